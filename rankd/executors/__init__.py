"""Where measuring runs. One contract, a table of names; each entry gives the same numbers.

work.py: what is handed over; solver.py: on one device, and what happens where that fails;
inline.py, threads.py, batches.py (a GPU): whose thread; workers.py: how threads end; devices.py, scheduling.py: which
device takes what; apart/: a process for each device; ray/: a cluster's; packed.py: works and outcomes for other
processes; frames.py: how messages to those are read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Protocol

import torch

from rankd.config import RAY_URL, ServeConfig
from rankd.executors.apart.solver import make_process_executor
from rankd.executors.batches import BatchExecutor
from rankd.executors.devices import choose_devices
from rankd.executors.inline import InlineExecutor
from rankd.executors.solver import MeasureError, OnChange, OnFault
from rankd.executors.threads import ThreadExecutor
from rankd.executors.work import TORCH_DTYPES, Work
from rankd.weights import Part, Settings, settings_of

__all__ = [
    "EXECUTORS",
    "TORCH_DTYPES",
    "Executor",
    "MeasureError",
    "OnFault",
    "Part",
    "Settings",
    "Work",
    "choose_devices",
    "executor_of",
    "make_executor",
    "settings_of",
]


class Executor(Protocol):
    """Runs measurements: up to `num_slots` of them are under way, and `num_workers` threads or GPUs work at them.
    `submit` never blocks; the future holds the Parts of a snapshot, the whole last, or a MeasureError."""

    num_slots: int

    @property
    def num_workers(self) -> int:
        """Fewer while a GPU is lost."""

    @property
    def devices(self) -> Sequence[torch.device]:
        """Those that measure: of GPUs those that are left, or the CPU."""

    @property
    def device(self) -> torch.device:
        """Where the next one is measured: the CPU from when the last GPU was lost."""

    def submit(self, work: Work) -> Future[list[Part]]: ...

    def close(self) -> None: ...


def _threads(devices: Sequence[torch.device], on_fault: OnChange, settings: Settings) -> Executor:
    """Threads on a CPU; on GPUs one thread each, which takes what waits in batches."""
    if devices[0].type == "cuda":
        return BatchExecutor(devices, on_fault, settings)
    return ThreadExecutor(devices[0], on_fault, settings)


EXECUTORS: dict[str, Callable[[Sequence[torch.device], OnChange, Settings], Executor]] = {
    "threads": _threads,
    "processes": make_process_executor,
    "inline": lambda devices, on_fault, settings: InlineExecutor(devices[0], on_fault, settings),
}
"""Those of this host alone."""


def executor_of(config: ServeConfig) -> str:
    """Which one `config` names, or leaves to us: where several GPUs measure, threads would wait for one another
    in Python (docs/decisions/0015). ConfigError where a GPU that it names is not there."""
    if config.executor != "auto":
        return config.executor
    several = config.device.startswith("cuda") and len(choose_devices(config.device)) > 1
    return "processes" if several and sys.platform == "linux" else "threads"


def make_executor(
    config: ServeConfig, on_fault: Callable[[str, str | None], None], count: Callable[[str], None] = lambda name: None
) -> Executor:
    """The one that `config` names, which calls `on_fault` and `count` (what a counter of that name counts) from
    threads of its own. ConfigError where it cannot be had."""
    devices, name = choose_devices(config.device), executor_of(config)
    if name == "ray" or name.startswith(RAY_URL):
        from rankd.executors.ray.executor import make_ray_executor

        return make_ray_executor(config, devices, on_fault, count)
    return EXECUTORS[name](devices, on_fault, settings_of(config.measure))
