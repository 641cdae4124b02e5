"""Work on a stretch of bytes, spread over some cores: one alone moves a third of what the memory of a server gives."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

MAX_THREADS, CORES_PER_THREAD = 4, 4
"""The trainer is on the same host, more often than not, and needs its cores and memory too."""

LEAST_BYTES = 1 << 20
"""Of one thread: handing it over takes as long as a quarter of it."""

T = TypeVar("T")


class Spread:
    """`num_threads`, the caller's among them; None: by the number of cores, when it is first needed."""

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_threads = num_threads
        self._others: ThreadPoolExecutor | None = None

    def over(self, start: int, end: int, step: int, work: Callable[[int, int], T]) -> list[T]:
        """What `work` gives for each part of `[start, end)`, in order; they begin at multiples of `step` from `start`
        on. `work` has to release the interpreter to gain anything. Raises what it raises, once all have ended."""
        if self._num_threads is None:
            self._num_threads = max(1, min(MAX_THREADS, len(os.sched_getaffinity(0)) // CORES_PER_THREAD))
        count = min(self._num_threads, (end - start) // max(step, LEAST_BYTES))
        if count < 2:
            return [work(start, end)]
        if self._others is None:
            self._others = ThreadPoolExecutor(self._num_threads - 1, "spread")
        size = -(-(end - start) // (count * step)) * step
        first, *rest = range(start, end, size)
        futures = [self._others.submit(work, at, min(end, at + size)) for at in rest]
        try:
            own = work(first, min(end, first + size))
        finally:
            wait(futures)
        return [own, *(future.result() for future in futures)]
