"""Memory that two processes can map: memfds, their seals, and mappings that live as long as a view of them does.

Python's own mmap keeps a second descriptor, which a forked data loader would hold the memory by, and unmaps in a child
what the child never had; hence libc's.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import weakref
from functools import cache
from typing import Any, Protocol

SEALS = 0x01 | 0x02 | 0x04 | 0x10
"""F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW, F_SEAL_FUTURE_WRITE (Linux 5.1): nobody cuts it short under a reader, nobody
but the mapping that is there already writes into it, and so it stays."""

_ADD_SEALS, _GET_SEALS = 1033, 1034
_MFD_NOEXEC_SEAL = 0x08
"""Linux 6.3; where vm.memfd_noexec asks for it, there is no other way."""

_FAILED = ctypes.c_void_p(-1).value

Bytes = Any
"""A ctypes array of c_ubyte: torch and memoryview keep it alive, and with it the mapping."""


def create(name: str, num_bytes: int) -> int:
    """The descriptor of a new memfd. Raises OSError, also where the system has none."""
    if not hasattr(os, "memfd_create"):
        raise OSError("no memfd_create on this system")
    try:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_NOEXEC_SEAL)
    except OSError:
        fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, num_bytes)
    except OSError:
        os.close(fd)
        raise
    return fd


def seal(fd: int) -> None:
    """Apply SEALS; what is to write into it is mapped before. Raises OSError where one is unknown."""
    fcntl.fcntl(fd, _ADD_SEALS, SEALS)


def is_sealed(fd: int) -> bool:
    """Whether it is a memfd with all of SEALS."""
    try:
        return fcntl.fcntl(fd, _GET_SEALS) & SEALS == SEALS
    except OSError:
        return False


def map_bytes(num_bytes: int, fd: int = -1, *, writable: bool = True) -> Bytes:
    """Map the memfd, or (-1) memory of this process's own. Raises OSError.

    Unmapped as soon as nothing refers to the array or a view of it any more; not at the interpreter's end, when it may
    be in use.
    """
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED if fd >= 0 else mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    address = _libc().mmap(None, num_bytes, protection, flags, fd, 0)
    if address == _FAILED:
        raise OSError(ctypes.get_errno(), f"mapping {num_bytes} bytes: {os.strerror(ctypes.get_errno())}")
    array = (ctypes.c_ubyte * num_bytes).from_address(address)
    weakref.finalize(array, _unmap, address, num_bytes, os.getpid()).atexit = False
    return array


def advise(array: Bytes, *advices: str) -> None:
    """madvise by the names of mmap's constants, as far as the system knows them."""
    for advice in advices:
        if (number := getattr(mmap, advice, None)) is not None:
            _libc().madvise(ctypes.addressof(array), len(array), number)


def close_with(array: Bytes, fd: int) -> None:
    """Close the descriptor when the mapping ends, and in forked children at once."""
    _descriptors.add(fd)
    weakref.finalize(array, _close, fd, os.getpid()).atexit = False


class Closable(Protocol):
    def close(self) -> None: ...


def close_in_children(thing: Closable) -> None:
    """A forked child would keep a connection open that its parent's end was to close."""
    _things.add(thing)


_descriptors: set[int] = set()
_things: weakref.WeakSet[Closable] = weakref.WeakSet()


def _after_fork() -> None:
    for fd in _descriptors:
        with contextlib.suppress(OSError):
            os.close(fd)
    _descriptors.clear()
    for thing in list(_things):
        with contextlib.suppress(OSError):
            thing.close()
    _things.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _unmap(address: int, num_bytes: int, pid: int) -> None:
    if os.getpid() == pid:  # a child has other things there, or nothing (MADV_DONTFORK)
        _libc().munmap(address, num_bytes)


def _close(fd: int, pid: int) -> None:
    if os.getpid() == pid and fd in _descriptors:
        _descriptors.discard(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


@cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [
        *(ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int),
        *(ctypes.c_int, ctypes.c_int, ctypes.c_long),
    ]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    return libc
