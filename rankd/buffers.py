"""Memory for snapshots, used again: the kernel clears every page that it hands out, which took six times as long as
copying a snapshot into it and looking at its values.

An allocator: like malloc's, its state is of the process. What it handed out comes back by itself, when nothing refers
to it any more, on whatever thread that is.
"""

from __future__ import annotations

import ctypes
import weakref
from collections import deque

import numpy as np
import numpy.typing as npt

LEAST_BYTES = 1 << 20
"""Smaller ones come from malloc, which keeps their memory as well."""

STEP_BYTES = 2 << 20
"""Sizes are rounded up to so many, a huge page: layers that differ a little share buffers."""

LINE_BYTES = 64

MAX_IDLE_BYTES = 512 << 20
"""Kept for later; what is in use has the limits of whoever uses it."""

TRIM_SECONDS = 10.0
"""What was not needed for as long goes back to the system."""

Array = npt.NDArray[np.uint8]


class Buffers:
    """Buffers by size. Nothing here takes a lock: a buffer may come back in the middle of anything."""

    def __init__(self, max_idle_bytes: int = MAX_IDLE_BYTES) -> None:
        self.max_idle_bytes = max_idle_bytes
        self._idle: dict[int, deque[Array]] = {}
        self._least_idle: dict[int, int] = {}
        """The fewest of each size that were idle at once since the last trim."""
        self._trimmed_at = 0.0

    @property
    def idle_bytes(self) -> int:
        return sum(size * len(buffers) for size, buffers in list(self._idle.items()))

    def empty(self, num_bytes: int) -> Array:
        """Uninitialised bytes, one dimension."""
        if num_bytes < LEAST_BYTES:
            return np.empty(num_bytes, np.uint8)
        size = -(-num_bytes // STEP_BYTES) * STEP_BYTES
        idle = self._idle.setdefault(size, deque())
        try:
            raw = idle.pop()
        except IndexError:
            raw = _aligned(size)
        self._least_idle[size] = min(self._least_idle.get(size, 0), len(idle))
        handle = (ctypes.c_ubyte * num_bytes).from_address(raw.ctypes.data)
        weakref.finalize(handle, self._give_back, raw).atexit = False
        return np.frombuffer(memoryview(handle), np.uint8)

    def trim(self, now: float) -> None:
        """To be called now and then, with seconds that do not go back."""
        if now - self._trimmed_at < TRIM_SECONDS:
            return
        self._trimmed_at = now
        for size, idle in list(self._idle.items()):
            for _ in range(min(self._least_idle.get(size, 0), len(idle))):
                idle.popleft()
            self._least_idle[size] = len(idle)

    def _give_back(self, raw: Array) -> None:
        if self.idle_bytes + raw.nbytes <= self.max_idle_bytes:
            self._idle[raw.nbytes].append(raw)


def _aligned(num_bytes: int) -> Array:
    """At the start of a cache line: where malloc begins, 16 bytes behind it, copies took a fifth longer."""
    raw = np.empty(num_bytes + LINE_BYTES, np.uint8)
    start = -raw.ctypes.data % LINE_BYTES
    return raw[start : start + num_bytes]


buffers = Buffers()
