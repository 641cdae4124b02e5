"""Where measuring runs. One contract, a table of names; each entry gives the same numbers."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from rankd.config import ConfigError
from rankd.metrics import compute_metrics
from rankd.records import Snapshot
from rankd.spectrum import measure_spectrum

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""The wire's dtype names that carry no scales. A fixed table: a name from the network is never looked up in torch."""

NICENESS = 10
"""Measuring yields to the trainer that may share these cores; intake, which is light, does not."""

IDLE_GPU_BYTES = 1 << 30
"""A GPU with more in use than a driver's own share belongs to somebody, even if we cannot see their processes."""


@dataclass(frozen=True, slots=True)
class Measured:
    metrics: dict[str, float | None]
    method: str
    seconds: float


class Executor(Protocol):
    """Runs measurements, `num_slots` of them at a time. `submit` never blocks and the future holds a Measured."""

    num_slots: int

    def submit(self, snapshot: Snapshot) -> Future[Measured]: ...

    def close(self) -> None: ...


def measure(snapshot: Snapshot, device: torch.device) -> Measured:
    """Singular values and metrics of `snapshot`, a matrix (size(0), -1) of its wire dtype, computed on `device`."""
    started = time.perf_counter()
    matrix = torch.frombuffer(snapshot.data, dtype=TORCH_DTYPES[snapshot.wire_dtype])
    spectrum = measure_spectrum(matrix.reshape(snapshot.rows, snapshot.cols).to(device))
    return Measured(compute_metrics(spectrum), spectrum.method, time.perf_counter() - started)


class InlineExecutor:
    """Measures in the caller's thread, before submit returns: for tests and for looking for a fault."""

    num_slots = 1

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def submit(self, snapshot: Snapshot) -> Future[Measured]:
        future: Future[Measured] = Future()
        future.set_result(measure(snapshot, self.device))
        return future

    def close(self) -> None:
        pass


class ThreadExecutor:
    """Worker threads of one intra-op thread each: two intra-op threads on busy cores were up to 15 times slower.

    On a GPU one worker: exact solves side by side gained nothing. On a CPU at least two, so that one huge layer does
    not hold up the others, and at most half the cores otherwise, which are the trainer's.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.num_slots = 1 if device.type == "cuda" else max(2, len(os.sched_getaffinity(0)) // 2)
        self._pool = ThreadPoolExecutor(self.num_slots, "measure", initializer=_prepare_worker)

    def submit(self, snapshot: Snapshot) -> Future[Measured]:
        return self._pool.submit(measure, snapshot, self.device)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):  # a courtesy, where the platform has it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


EXECUTORS: dict[str, Callable[[torch.device], Executor]] = {"threads": ThreadExecutor, "inline": InlineExecutor}


def choose_device(name: str) -> torch.device:
    """`name` is cpu, cuda:N or auto: the CPU unless there is a GPU that no other process uses, because memory taken
    from a trainer's GPU can end the training. ConfigError where cuda:N is not there."""
    if name != "auto":
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device={name!r}: expected one of the {torch.cuda.device_count()} GPUs that are there")
        return device
    for index in range(torch.cuda.device_count()):
        if _is_idle(index):
            return torch.device("cuda", index)
    return torch.device("cpu")


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
