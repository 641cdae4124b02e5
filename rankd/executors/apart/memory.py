"""Memory that the daemon writes batches into and a process that measures reads them from: memfds, which have no name
and end with those that map them."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch

from rankd.executors.packed import Array
from rankd.executors.work import Work
from rankd_client import memfd

BUFFER_BYTES = 512 << 20
"""Of a batch that is written at once: 16 matrices of 4,096 × 4,096 in bfloat16. A larger batch goes in several; one
matrix that is larger has memory of its own size, until the next batch."""

MIN_BUFFER_BYTES = 16 << 20
ALIGNMENT = 64

Range = tuple[int, int]
"""Where an array's bytes begin and end."""


class Buffer:
    """The daemon's side. Grows with what is written, in powers of two."""

    def __init__(self, place: int, max_bytes: int = BUFFER_BYTES) -> None:
        self.place = place
        self._max_bytes = max_bytes
        self._bytes: Array = np.empty(0, np.uint8)

    @property
    def num_bytes(self) -> int:
        return self._bytes.nbytes

    def fill(self, arrays: Sequence[Array]) -> tuple[list[Range], int | None]:
        """Where each of `arrays` lies, and, where they are in other memory than the last ones, its descriptor, which
        the caller closes. OSError for want of memory."""
        ranges, total = [], 0
        for array in arrays:
            ranges.append((total, total + array.nbytes))
            total = -(-(total + array.nbytes) // ALIGNMENT) * ALIGNMENT
        descriptor = self._replace(total) if self._is_unfit(total) else None
        for array, (start, end) in zip(arrays, ranges, strict=True):
            self._bytes[start:end] = array
        return ranges, descriptor

    def _is_unfit(self, total: int) -> bool:
        return total > self.num_bytes or not self.num_bytes or total <= self._max_bytes < self.num_bytes

    def _replace(self, total: int) -> int:
        size = max(total, min(self._max_bytes, max(MIN_BUFFER_BYTES, 1 << (total - 1).bit_length() if total else 0)))
        self._bytes = np.empty(0, np.uint8)  # the former goes first
        descriptor = memfd.create("rankd-batch", size)
        try:
            self._bytes = np.frombuffer(memfd.map_bytes(size, descriptor), np.uint8)
        except OSError:
            os.close(descriptor)
            raise
        return descriptor


class Mappings:
    """The other side: the same buffers, by their places; for `device`, a GPU, page-locked, so that copies to it run at
    the bus's speed and without one in between."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers: dict[int, Array] = {}

    def replace(self, place: int, descriptor: int) -> None:
        """Closes the descriptor."""
        self._buffers.pop(place, None)
        try:
            array = memfd.map_bytes(os.fstat(descriptor).st_size, descriptor)
        finally:
            os.close(descriptor)
        if self._device.type == "cuda":
            _lock_pages(array)
        self._buffers[place] = np.frombuffer(array, np.uint8)

    def arrays(self, place: int, ranges: Sequence[Range]) -> list[Array]:
        return [self._buffers[place][start:end] for start, end in ranges]


def in_pieces(works: Sequence[Work], max_bytes: int) -> Iterator[list[Work]]:
    """Of at most so many bytes, or one work."""
    piece: list[Work] = []
    held = 0
    for work in works:
        num_bytes = work.num_bytes + 2 * ALIGNMENT
        if piece and held + num_bytes > max_bytes:
            yield piece
            piece, held = [], 0
        piece.append(work)
        held += num_bytes
    if piece:
        yield piece


def _lock_pages(array: memfd.Bytes) -> None:
    """As long as the array lives; where that is refused, copies are slower."""
    try:
        cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
        if int(cudart.cudaHostRegister(ctypes.addressof(array), len(array), 0)) == 0:
            # Before the mapping ends: of an object's finalizers the last one made is the first to run.
            weakref.finalize(array, cudart.cudaHostUnregister, ctypes.addressof(array)).atexit = False
            return
    except (RuntimeError, AssertionError):  # no such GPU: the first batch says so
        return
    with suppress(RuntimeError):  # CUDA would tell the next launch
        torch.zeros(1, device="cuda")
