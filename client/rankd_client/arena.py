"""Preallocated memory for snapshots: blocks that are cut into regions, first fit, bounded once and for all.

In front of each block's regions is its header, whose epoch tells a daemon that was lent the block whether what it
copied is whole (docs/protocol.md, Lent memory).

Under load fresh buffers made a copy 3–4 times slower than preallocated ones, and a bound that is allocated is a bound
that holds. Pure: what a block is made of is the caller's choice. Not thread-safe; the outbox locks around it.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from rankd_client.wire import BLOCK_HEADER_BYTES

ALIGNMENT_BYTES = 64
"""A cache line: no two regions share one, and every element type is aligned."""


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes, and the object that owns them in the form that the copier likes (a torch tensor of uint8). `fd` is that of
    the sealed memfd that it is, by which another process can read it; -1: it is none."""

    view: memoryview
    owner: Any = None
    fd: int = -1


@dataclass(slots=True, eq=False)
class Block:
    """`num_bytes` for regions, behind the header."""

    memory: Memory
    num_bytes: int
    free: list[tuple[int, int]] = field(init=False)
    """Free spans [start, end), sorted, never touching one another."""

    used_end: int = BLOCK_HEADER_BYTES
    """Beyond it nothing has ever lain."""

    def __post_init__(self) -> None:
        self.free = [(BLOCK_HEADER_BYTES, BLOCK_HEADER_BYTES + self.num_bytes)]

    @property
    def size(self) -> int:
        """With the header."""
        return BLOCK_HEADER_BYTES + self.num_bytes

    def set_epoch(self, epoch: int) -> None:
        """In one store of 8 bytes: a reader sees the old number or the new one."""
        self.memory.view[:8].cast("Q")[0] = epoch


@dataclass(frozen=True, slots=True, eq=False)
class Region:
    """`num_bytes` bytes of a block from `start` on; `reserved_bytes` of it are taken, up to the alignment."""

    block: Block
    start: int
    num_bytes: int
    reserved_bytes: int

    @property
    def view(self) -> memoryview:
        return self.block.memory.view[self.start : self.start + self.num_bytes]


def aligned(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


class Arena:
    """At most `max_bytes` of memory for regions, taken from `allocate(num_bytes)` block by block and never given back.
    `blocks` grows alone, so that any thread may read it."""

    def __init__(self, max_bytes: int, allocate: Callable[[int], Memory]) -> None:
        self.max_bytes = max_bytes
        self.num_bytes = 0
        """Allocated so far."""
        self.free_bytes = 0
        """Of it, in no region; not necessarily in one piece."""
        self.allocate = allocate
        self.blocks: list[Block] = []

    def grow(self, wanted_bytes: int, smallest_bytes: int = 0) -> bool:
        """Have `wanted_bytes` in all, or as much as `max_bytes` allows; True if a block was allocated.

        A block of less than `smallest_bytes` (the largest region that is asked for) would be of no use and is not
        taken; where none of those that there are is as large, one is, however many bytes there are in all.
        """
        room = self.max_bytes // ALIGNMENT_BYTES * ALIGNMENT_BYTES - self.num_bytes
        num_bytes = max(aligned(wanted_bytes) - self.num_bytes, 0)
        if num_bytes or all(block.num_bytes < smallest_bytes for block in self.blocks):
            num_bytes = max(num_bytes, aligned(smallest_bytes))
        num_bytes = min(num_bytes, room)
        if num_bytes <= 0 or num_bytes < smallest_bytes:
            return False
        self.blocks.append(Block(self.allocate(BLOCK_HEADER_BYTES + num_bytes), num_bytes))
        self.num_bytes += num_bytes
        self.free_bytes += num_bytes
        return True

    def reserve(self, num_bytes: int) -> Region | None:
        """The first free place of `num_bytes` bytes (at least 1); None if there is none."""
        needed = aligned(max(num_bytes, 1))
        if needed > self.free_bytes:
            return None
        for block in self.blocks:
            for index, (start, end) in enumerate(block.free):
                if end - start >= needed:
                    block.free[index : index + 1] = [(start + needed, end)] if end - start > needed else []
                    self.free_bytes -= needed
                    block.used_end = max(block.used_end, start + needed)
                    return Region(block, start, num_bytes, needed)
        return None

    def reserve_fresh(self, num_bytes: int) -> Region | None:
        """A place that nothing has lain in yet; None where there is none."""
        needed = aligned(max(num_bytes, 1))
        for block in self.blocks:
            fresh = Region(block, block.used_end, num_bytes, needed)
            if (region := self.reserve_again(fresh)) is not None:
                block.used_end += needed
                return region
        return None

    def reserve_again(self, region: Region) -> Region | None:
        """The place of a region that was given back; None where something else lies there."""
        free = region.block.free
        end = region.start + region.reserved_bytes
        index = bisect_right(free, (region.start, math.inf)) - 1  # the last span that begins no later
        if index < 0 or free[index][1] < end:
            return None
        first, last = free[index]
        free[index : index + 1] = [part for part in ((first, region.start), (end, last)) if part[0] < part[1]]
        self.free_bytes -= region.reserved_bytes
        return replace(region)

    def release(self, region: Region) -> None:
        """Give `region` back and join it with the free spans beside it."""
        free = region.block.free
        span = (region.start, region.start + region.reserved_bytes)
        index = bisect_left(free, span)
        free.insert(index, span)
        self.free_bytes += region.reserved_bytes
        if index + 1 < len(free) and free[index + 1][0] == span[1]:
            free[index : index + 2] = [(span[0], free[index + 1][1])]
        if index > 0 and free[index - 1][1] == span[0]:
            free[index - 1 : index + 1] = [(free[index - 1][0], free[index][1])]
