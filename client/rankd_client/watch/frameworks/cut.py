"""How a tensor is cut along its dimensions, and where the parts lie in the matrix (size(0), -1). Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

from rankd_client.wire import Shard
from rankd_client.wire.limits import MAX_PIECES

if TYPE_CHECKING:
    import torch

Intervals = tuple[tuple[int, int], ...]
"""Indices along one dimension, `[start, end)` each, in the order in which a process has them."""


def chunk(kept: Intervals, num_chunks: int, index: int) -> Intervals:
    """Chunk `index` of these indices, cut as torch.chunk does: the first ones full, the last ones less or empty."""
    size = -(-length(kept) // num_chunks)
    return _between(kept, index * size, (index + 1) * size)


def strided_chunk(kept: Intervals, num_blocks: int, num_chunks: int, index: int) -> Intervals:
    """Chunk `index` of each of `num_blocks` chunks: what an outer cut leaves where the inner one was made first."""
    blocks = [chunk(kept, num_blocks, block) for block in range(num_blocks)]
    return _joined([part for block in blocks for part in chunk(block, num_chunks, index)])


def length(kept: Intervals) -> int:
    return sum(end - start for start, end in kept)


@dataclass(frozen=True, slots=True)
class Cut:
    """The part of a tensor of `shape` that has the indices `kept` along each dimension."""

    shape: tuple[int, ...]
    kept: tuple[Intervals, ...]

    @property
    def num_elements(self) -> int:
        return math.prod(length(kept) for kept in self.kept)

    @property
    def too_many(self) -> bool:
        """Whether its rectangles are more than a shard has, or of several sizes so that no view of the part has their
        order."""
        if not self.num_elements:
            return False
        last, rows, columns = self._last, self.kept[0], self.kept[self._last]
        num_columns = math.prod(length(kept) for kept in self.kept[1:last]) * len(columns) if last else 1
        uneven = (len(rows) > 1 and not _even(rows)) or (last > 0 and not _even(columns))
        return len(rows) * num_columns > MAX_PIECES or (num_columns > 1 and uneven)

    def shard(self) -> Shard | None:
        """The rectangles of the matrix, row block by row block; an empty one where it has no element. None where they
        are too many."""
        if self.too_many:
            return None
        if not self.num_elements:
            return Shard(rectangles=((0, 0, 0, 0 if self._last else math.prod(self.shape[1:])),))
        return Shard(tuple((r0, r1, c0, c1) for r0, r1 in self.kept[0] for c0, c1 in self._columns()))

    def view(self, part: torch.Tensor) -> torch.Tensor:
        """The part, of the dimensions that are kept of `shape`, in the order of `shard()`. Copies nothing."""
        last, rows = self._last, self.kept[0]
        if not last or (last == 1 and len(self.kept[1]) == 1):  # one rectangle below the other
            return part
        for dim, num_blocks in ((last, len(self.kept[last])), (0, len(rows))):
            part = part.unflatten(dim, (num_blocks, -1))  # type: ignore[no-untyped-call]
        # row blocks, rows in one | dimensions before the last that is cut | its blocks, indices in one | the rest
        order = [0, *range(2, last + 2), 1, *range(last + 2, part.dim())]
        return part.permute(order)

    @property
    def _last(self) -> int:
        """The last dimension that is cut, but for the first; 0: none."""
        whole = [kept == ((0, size),) for kept, size in zip(self.kept, self.shape, strict=True)]
        return max((dim for dim in range(1, len(whole)) if not whole[dim]), default=0)

    def _columns(self) -> list[tuple[int, int]]:
        last, strides = self._last, [math.prod(self.shape[dim + 1 :]) for dim in range(len(self.shape))]
        if not last:
            return [(0, strides[0])]
        inner = [[i for start, end in self.kept[dim] for i in range(start, end)] for dim in range(1, last)]
        found = []
        for indices in product(*inner):
            base = sum(i * stride for i, stride in zip(indices, strides[1:last], strict=True))
            found += [(base + start * strides[last], base + end * strides[last]) for start, end in self.kept[last]]
        return found


def _between(kept: Intervals, first: int, end: int) -> Intervals:
    """Those from position `first` to `end`."""
    found, at = [], 0
    for low, high in kept:
        start, stop = max(first, at), min(end, at + high - low)
        if start < stop:
            found.append((low + start - at, low + stop - at))
        at += high - low
    return tuple(found)


def _joined(parts: list[tuple[int, int]]) -> Intervals:
    found: list[tuple[int, int]] = []
    for start, end in parts:
        if found and found[-1][1] == start:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return tuple(found)


def _even(kept: Intervals) -> bool:
    return len({end - start for start, end in kept}) == 1
