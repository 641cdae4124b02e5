"""Which devices to measure on."""

from __future__ import annotations

import shutil
import subprocess

import torch

from rankd.config import ConfigError
from rankd.executors.solver import CPU

IDLE_GPU_BYTES = 1 << 30
"""A GPU with more in use than a driver's own share belongs to somebody, even if we cannot see their processes."""


def choose_devices(names: str) -> list[torch.device]:
    """`names` is cpu, auto, cuda (all GPUs there are), or cuda:N, several of them with commas between. auto: the CPU
    unless there is a GPU that no other process uses, because memory taken from a trainer's GPU can end the training.
    ConfigError where cuda:N is not there, or no GPU at all."""
    if names == "auto":
        return [next((torch.device("cuda", i) for i in range(torch.cuda.device_count()) if _is_idle(i)), CPU)]
    if names == "cpu":
        return [CPU]
    if not (count := torch.cuda.device_count()):
        raise ConfigError(f"device={names!r}: expected GPUs; torch sees none")
    if names == "cuda":
        return [torch.device("cuda", place) for place in range(count)]
    # Not by torch.device(name), for which cuda:256 is cuda:0. A GPU that is named twice is one.
    places = dict.fromkeys(int(name.removeprefix("cuda:")) for name in names.split(","))
    if max(places) >= count:
        raise ConfigError(f"device={names!r}: expected some of the {count} GPUs that are there")
    return [torch.device("cuda", place) for place in places]


def _is_idle(index: int) -> bool:
    """Whether nobody uses the GPU, as its driver's own tool says; where that cannot be asked, somebody might."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    try:
        users = _ask(smi, uuid, "--query-compute-apps=pid")
        used_bytes = float(_ask(smi, uuid, "--query-gpu=memory.used")) * 2**20
        return not users and used_bytes < IDLE_GPU_BYTES
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def _ask(smi: str, uuid: str, query: str) -> str:
    command = [smi, f"--id={uuid}", query, "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
