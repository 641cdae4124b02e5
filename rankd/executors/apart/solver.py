"""A device's solver that is a process: started, handed batches, and started again when it is gone."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Sequence
from functools import partial

import torch

from rankd.config import ConfigError
from rankd.executors.apart.memory import BUFFER_BYTES, in_pieces
from rankd.executors.apart.process import ApartError, Process
from rankd.executors.batches import BatchExecutor
from rankd.executors.solver import CPU, NotHereError, OnChange, Outcome
from rankd.executors.threads import num_threads
from rankd.executors.work import Work
from rankd.plan.costs import Costs
from rankd.weights import Settings

log = logging.getLogger("rankd.executors")

Pauses = tuple[float, float]
"""Seconds until a process that was lost is started again, and those that it comes to by doubling where that does not
help. One that has lived for as long as the second begins with the first again."""

DEVICE_PAUSES: Pauses = (60.0, 3600.0)
"""What brought it down may still be there, and whoever listens hears of each loss; a GPU that is broken costs a start
an hour."""

REST_PAUSES: Pauses = (1.0, 60.0)
"""The others go on without it, but nobody does its work."""

HANG_SECONDS, HANG_TIMES, MAX_HANG_SECONDS = 600.0, 100.0, 1e6
"""A process hangs that has not answered for so long and so many times what is expected of the batch. The first is for
libraries that come from a slow disk. The second is for a first guess that knows nothing of the device (a GPU for games
has a 50th of an H100's float64), and for what is learned on cores that are idle (busy ones leave a process of niceness
10 a tenth). The last, 12 days, keeps a wild prediction within what poll() can be told."""


class SolverApart:
    """A Solver whose device is measured on by a process of its own, which is started again when it was lost."""

    def __init__(
        self,
        device: torch.device,
        on_fault: OnChange,
        settings: Settings,
        pauses: Pauses = DEVICE_PAUSES,
        num_threads: int | None = None,
        costs: Costs | None = None,
    ) -> None:
        """`num_threads`: how many call `try_all`; two for a GPU, which is not to wait while a batch is copied, one for
        a CPU, beside which copying is nothing. `costs`: what is known of them, which somebody else learns."""
        self.device = device
        self.num_threads = num_threads or (2 if device.type == "cuda" else 1)
        self.is_lost = False
        self._on_fault, self._settings = on_fault, settings
        self._pauses, self._pause = pauses, 0.0
        self._costs = Costs() if costs is None else costs
        self._beginning, self._changing = threading.Lock(), threading.Lock()
        self._closed = threading.Event()
        self._process: Process | None = None
        self.is_ready = False
        self._ready_at = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process that is there."""
        process = self._process
        return None if process is None else process.pid

    def begin(self) -> bool:
        """Waits for the process: the first time to be started, then for a pause and to be started again. False when
        closed. What ends the calling thread ends the process."""
        with self._beginning:
            while not self.is_ready:
                if self._closed.wait(self._pause if self.is_lost else 0):
                    return False
                self._try_to_start()
        return not self._closed.is_set()

    def try_all(self, tasks: Sequence[Work]) -> list[Outcome]:
        """As a Solver's. What the process was at when it was lost is "lost", what it had not begun is "gone"."""
        return [outcome for piece in in_pieces(tasks, BUFFER_BYTES) for outcome in self._try(piece)]

    def free_bytes(self) -> float:
        """As the process said after its last batch."""
        process = self._process
        return float("inf") if process is None else process.free_bytes

    def close(self) -> None:
        with self._changing:
            self._closed.set()
            process = self._process
        if process is not None:
            process.close()

    def _try_to_start(self) -> None:
        try:
            with self._changing:
                if self._closed.is_set():
                    return
                process = self._process = Process(self.device, self._settings, self.num_threads)
            process.wait_ready()
        except (OSError, ApartError) as error:
            self._lose(self._process, str(error))
            return
        self._ready_at = time.monotonic()
        was_lost, self.is_ready, self.is_lost = self.is_lost, True, False
        log.info("ready to measure device=%s pid=%d", self.device, process.pid)
        if was_lost:
            self._on_fault("device", None)

    def _try(self, works: list[Work]) -> list[Outcome]:
        process, outcomes = self._process, None
        try:
            if process is not None and self.is_ready:
                outcomes = process.measure(works, self._max_seconds(works))
        except OSError as error:
            log.warning("not enough memory to hand matrices to %s: %s", self.device, error)
            return [NotHereError("memory") for _ in works]
        except ApartError as error:
            self._lose(process, str(error))
            return [NotHereError("lost" if error.had_begun else "gone") for _ in works]
        if outcomes is None:
            return [NotHereError("gone") for _ in works]
        if process is not None and process.fault is not None:
            self._lose(process, process.fault)
        return outcomes

    def _max_seconds(self, works: list[Work]) -> float:
        """Until the process hangs. They are alike, as all of a batch."""
        size = works[0].size(self._settings)
        expected = len(works) * self._costs.predict(self.device.type, works[0].tier, size)
        return min(HANG_SECONDS + HANG_TIMES * expected, MAX_HANG_SECONDS)

    def _lose(self, process: Process | None, text: str) -> None:
        """The other thread sees it at once; that the process is gone may take the kernel some time."""
        with self._changing:
            was_lost, self.is_ready, self.is_lost, self._process = self.is_lost, False, True, None
        if process is not None:
            process.close()
        if self._closed.is_set():
            return
        first, longest = self._pauses
        lived = time.monotonic() - self._ready_at
        self._pause = first if not was_lost and lived > longest else min(max(first, 2 * self._pause), longest)
        what = "measuring on the CPU" if self.device == CPU else str(self.device)
        text = text if text.startswith(f"{what} failed") else f"{what} failed: {text}"
        log.error("%s; its process is started again in %.0f s", text, self._pause)
        if not was_lost:
            again = "started" if self.device == CPU else "tried"
            self._on_fault("device", f"{text}; it is {again} again in {self._pause:.0f} s")


def make_process_executor(devices: Sequence[torch.device], on_fault: OnChange, settings: Settings) -> BatchExecutor:
    """A process for each GPU; of a CPU as many as there would be threads. ConfigError where there is no memory that
    processes can share."""
    if not hasattr(os, "memfd_create"):
        raise ConfigError("executor='processes': expected Linux, for memory that processes share; take threads")
    if devices[0] == CPU:
        devices = [CPU] * num_threads()
    return in_processes(devices, on_fault, settings)


def in_processes(
    devices: Sequence[torch.device], on_fault: OnChange, settings: Settings, pauses: Pauses = DEVICE_PAUSES
) -> BatchExecutor:
    """A process for each of `devices`. They are started here, and not waited for."""
    costs = Costs()
    make = partial(SolverApart, settings=settings, pauses=pauses, costs=costs)
    return BatchExecutor(devices, on_fault, settings, make, partial(make_rest, settings=settings, costs=costs), costs)


def make_rest(device: torch.device, on_fault: OnChange, settings: Settings, costs: Costs | None = None) -> SolverApart:
    """Started when there is something for it; that it was lost is told with what it was at."""
    return SolverApart(device, lambda name, text: None, settings, REST_PAUSES, 1, costs)
