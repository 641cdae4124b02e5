"""Measuring on worker threads of a CPU."""

from __future__ import annotations

import contextlib
import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor

import torch

from rankd.executors.solver import OnFault, Solver
from rankd.executors.work import Work
from rankd.weights import Part, Settings

NICENESS = 10
"""Measuring yields to the trainer that may share these cores; intake, which is light, does not."""


class ThreadExecutor:
    """Worker threads of one intra-op thread each: two intra-op threads on busy cores were up to 15 times slower."""

    def __init__(self, device: torch.device, on_fault: OnFault, settings: Settings) -> None:
        self._solver = Solver(device, on_fault, settings)
        self.num_slots = self.num_workers = num_threads()
        self._pool = ThreadPoolExecutor(self.num_slots, "measure", initializer=prepare_worker)

    @property
    def device(self) -> torch.device:
        return self._solver.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return (self.device,)

    def submit(self, work: Work) -> Future[list[Part]]:
        return self._pool.submit(self._solver.measure, work)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def num_threads() -> int:
    """At least two, so that one huge layer does not hold up the others, and at most half the cores otherwise, which are
    the trainer's."""
    return max(2, len(os.sched_getaffinity(0)) // 2)


def prepare_worker() -> None:
    """One intra-op thread, and behind the trainer."""
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):  # a courtesy, where the platform has it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
