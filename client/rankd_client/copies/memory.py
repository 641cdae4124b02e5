"""What the arena's blocks are made of."""

from __future__ import annotations

import ctypes
import os
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from rankd_client import memfd
from rankd_client.arena import Memory, Region

if TYPE_CHECKING:
    import torch


def allocate(num_bytes: int, pinned: bool = False) -> Memory:
    """Memory for the arena, its pages touched now and not during a push; page-locked if a GPU is to write into it.

    A sealed memfd where the system has such, so that a daemon on this host can read it; else memory of this process's
    own. In huge pages where there are some, and left out of forked children, where each later write of the trainer's
    would otherwise have to copy a page first.
    """
    import torch

    array, fd = _mapped(num_bytes)
    memfd.advise(array, "MADV_HUGEPAGE", "MADV_DONTFORK")
    if pinned and not _register(array):
        return _pinned_by_torch(num_bytes)
    owner = torch.frombuffer(array, dtype=torch.uint8)
    owner.zero_()
    return Memory(memoryview(array).cast("B"), owner, fd)


def bytes_of(region: Region) -> torch.Tensor:
    """The region as uint8, one dimension."""
    owner: torch.Tensor = region.block.memory.owner
    return owner[region.start : region.start + region.num_bytes]


def torch_dtype(name: str) -> torch.dtype:
    """Of a dtype without scales, by its name in the wire's table. Raises KeyError for any other name."""
    import torch

    return {
        "float64": torch.float64,
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }[name]


def _mapped(num_bytes: int) -> tuple[memfd.Bytes, int]:
    """An array of so many bytes, and the descriptor of the sealed memfd that it is; -1 where it is none."""
    try:
        fd = memfd.create("rankd-arena", num_bytes)
    except OSError:
        return memfd.map_bytes(num_bytes), -1
    try:
        array = memfd.map_bytes(num_bytes, fd)
        memfd.seal(fd)
    except OSError:
        os.close(fd)
        return memfd.map_bytes(num_bytes), -1
    memfd.close_with(array, fd)
    return array, fd


def _register(array: memfd.Bytes) -> bool:
    """Lock its pages for the GPUs, as long as the array lives: just those, where torch would round their
    number up to a power of two."""
    import torch

    cudart: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = ctypes.addressof(array)
    if int(cudart.cudaHostRegister(address, len(array), 0)) != 0:
        with suppress(RuntimeError):  # CUDA would tell the next launch of this thread, which may be the trainer's
            torch.zeros(1, device="cuda")
        return False
    # Before the mapping ends: of an object's finalizers the last one made is the first to run.
    weakref.finalize(array, _unregister, cudart, address, os.getpid()).atexit = False
    return True


def _unregister(cudart: Any, address: int, pid: int) -> None:
    if os.getpid() == pid:  # a forked child has no GPU
        cudart.cudaHostUnregister(address)


def _pinned_by_torch(num_bytes: int) -> Memory:
    import torch

    owner = torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
    array = (ctypes.c_ubyte * num_bytes).from_address(owner.data_ptr())
    array._owner = owner  # type: ignore[attr-defined]  # lives as long as a view of it
    return Memory(memoryview(array).cast("B"), owner)
