"""Work on a stretch of bytes, spread over some cores: one alone moves a third of what the memory of a server gives."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TypeVar

MAX_THREADS, CORES_PER_THREAD = 4, 4
"""The trainer is on the same host, more often than not, and needs its cores and memory too."""

LEAST_BYTES = 1 << 20
"""Of one thread: handing it over takes as long as a quarter of it."""

T = TypeVar("T")


class Helpers:
    """Threads that help their caller. `num_threads`, the caller's among them; None: by the number of cores, when they
    are first needed. Where the system has no more threads to give, the caller does all by itself."""

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_threads = num_threads
        self._others: ThreadPoolExecutor | None = None

    def spread(self, start: int, end: int, step: int, work: Callable[[int, int], T]) -> list[T]:
        """What `work` gives for each part of `[start, end)`, in order; they begin at multiples of `step` from `start`
        on. `work` has to release the interpreter to gain anything. Raises what it raises, once all have ended."""
        count = min(self._ready(), (end - start) // max(step, LEAST_BYTES))
        if count < 2:
            return [work(start, end)]
        size = -(-(end - start) // (count * step)) * step
        first, *rest = range(start, end, size)
        futures: list[Future[T]] = []
        try:
            assert self._others is not None
            for at in rest:
                futures.append(self._others.submit(work, at, min(end, at + size)))
            own = work(first, min(end, first + size))
        finally:
            wait(futures)
        return [own, *(future.result() for future in futures)]

    def _ready(self) -> int:
        """How many there are, all of them started: what is handed over later needs no more of the system."""
        if self._num_threads is None:
            self._num_threads = max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // CORES_PER_THREAD))
        if self._num_threads > 1 and self._others is None:
            self._others = ThreadPoolExecutor(self._num_threads - 1, "helper")
            leave = threading.Event()
            try:
                for _ in range(self._num_threads - 1):
                    self._others.submit(leave.wait)
            except RuntimeError:
                self._num_threads = 1
            finally:
                leave.set()
        return self._num_threads
