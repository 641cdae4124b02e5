"""One block of a client's arena, mapped for reading. What is checked here is what makes reading it safe: a memfd that
nobody can cut short any more, all of whose pages are there."""

from __future__ import annotations

import os
from dataclasses import dataclass

from rankd_client import memfd
from rankd_client.wire import BLOCK_HEADER_BYTES, WireError


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """`view` is of its bytes with the header, read-only; the mapping ends with the last view of it. `epoch` is the one
    that it was lent with."""

    view: memoryview
    epoch: int

    def is_unchanged(self) -> bool:
        """Whether its client has ended no loan yet. In one load of 8 bytes, after whatever was copied before it: the
        interpreter and numpy take locks in between."""
        return bool(self.view[:8].cast("Q")[0] == self.epoch)

    def part(self, at: int, num_bytes: int) -> memoryview:
        """Raises WireError where it is not all in this block, behind the header."""
        if at < BLOCK_HEADER_BYTES or at + num_bytes > len(self.view):
            raise WireError("not_lent", f"bytes {at} to {at + num_bytes} of a block of {len(self.view)}")
        return self.view[at : at + num_bytes]


def map_block(fd: int, num_bytes: int, epoch: int) -> Block:
    """The block whose descriptor (to be closed by the caller) a client sent. Raises WireError where it is not what a
    daemon may map: a hostile file would end the process (SIGBUS) or have it allocate."""
    if not memfd.is_sealed(fd):  # first: what is asked next cannot change any more
        raise WireError("bad_memory", f"expected a memfd with seals {memfd.SEALS:#x}")
    info = os.fstat(fd)
    if info.st_size != num_bytes:
        raise WireError("bad_memory", f"a memfd of {info.st_size} bytes; expected {num_bytes}")
    if info.st_blocks * 512 < num_bytes:
        raise WireError("bad_memory", f"{info.st_blocks * 512} of {num_bytes} bytes are allocated; expected all")
    try:
        array = memfd.map_bytes(num_bytes, fd, writable=False)
    except OSError as error:
        raise WireError("too_much_lent", f"{error}") from None
    return Block(memoryview(array).cast("B").toreadonly(), epoch)
