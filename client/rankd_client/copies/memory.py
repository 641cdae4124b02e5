"""What the arena's blocks are made of."""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING

from rankd_client.arena import Memory, Region

if TYPE_CHECKING:
    import torch


def allocate(num_bytes: int, pinned: bool = False) -> Memory:
    """Memory for the arena, its pages touched now and not during a push; page-locked if a GPU is to write into it.

    On the CPU an anonymous mapping: in huge pages where the system has them, and left out of forked children, where
    each later write of the trainer's would otherwise have to copy a page first.
    """
    import torch

    if pinned:
        owner = torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        array = (ctypes.c_ubyte * num_bytes).from_address(owner.data_ptr())
        array._owner = owner  # type: ignore[attr-defined]  # lives as long as a view of it
        return Memory(memoryview(array).cast("B"), owner)
    buffer = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK"):
        with suppress(OSError, AttributeError):
            buffer.madvise(getattr(mmap, advice))
    owner = torch.frombuffer(buffer, dtype=torch.uint8)
    owner.zero_()
    return Memory(memoryview(buffer), owner)


def bytes_of(region: Region) -> torch.Tensor:
    """The region as uint8, one dimension."""
    owner: torch.Tensor = region.block.memory.owner
    return owner[region.start : region.start + region.num_bytes]
