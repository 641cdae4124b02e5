"""What a daemon maps, and what it does not: each rule broken by itself."""

from __future__ import annotations

import os
import tempfile

import pytest
from lending import Memory, num_mappings

from rankd.lent.blocks import map_block
from rankd_client import memfd
from rankd_client.wire import WireError


def test_a_block_is_read_where_it_is_and_not_written() -> None:
    memory = Memory(4096, epoch=7)
    block = map_block(memory.fd, memory.size, 7)
    memory.view[64:68] = b"abcd"
    assert bytes(block.part(64, 4)) == b"abcd"
    with pytest.raises(TypeError):
        block.view[64] = 0
    memory.close()


def test_the_epoch_tells_whether_a_loan_has_ended() -> None:
    memory = Memory(epoch=7)
    block = map_block(memory.fd, memory.size, 7)
    assert block.is_unchanged()
    memory.set_epoch(8)
    assert not block.is_unchanged()
    memory.close()


@pytest.mark.parametrize("lacking", [0x01, 0x02, 0x04, 0x10])
def test_a_memfd_that_lacks_a_seal_is_refused(lacking: int) -> None:
    memory = Memory(seals=memfd.SEALS & ~lacking)
    before = num_mappings()
    with pytest.raises(WireError, match="bad_memory: expected a memfd with seals"):
        map_block(memory.fd, memory.size, 1)
    assert num_mappings() == before
    memory.close()


@pytest.mark.parametrize("kind", ["file", "pipe", "socket", "directory", "zero"])
def test_a_descriptor_that_is_no_memfd_is_refused(kind: str) -> None:
    with tempfile.TemporaryFile() as file:
        file.write(bytes(4160))
        file.flush()
        pipe = os.pipe()
        opened = {
            "file": file.fileno(),
            "pipe": pipe[0],
            "socket": pipe[1],
            "directory": os.open("/", os.O_RDONLY),
            "zero": os.open("/dev/zero", os.O_RDWR),
        }
        try:
            with pytest.raises(WireError, match="bad_memory"):
                map_block(opened[kind], 4160, 1)
        finally:
            for fd in (*pipe, opened["directory"], opened["zero"]):
                os.close(fd)


@pytest.mark.parametrize("more", [-1, 1, 1 << 40])
def test_a_size_that_is_not_the_files_is_refused(more: int) -> None:
    memory = Memory()
    with pytest.raises(WireError, match="bad_memory"):
        map_block(memory.fd, memory.size + more, 1)
    memory.close()


def test_memory_with_holes_would_grow_when_it_is_read_and_is_refused() -> None:
    memory = Memory(1 << 20, touched=False)
    memory.view[: 1 << 19] = bytes(1 << 19)
    with pytest.raises(WireError, match="are allocated; expected all"):
        map_block(memory.fd, memory.size, 1)
    memory.close()


def test_a_sealed_block_can_neither_be_cut_short_nor_holed_under_the_daemon() -> None:
    memory = Memory()
    block = map_block(memory.fd, memory.size, 1)
    for attack in (
        lambda: os.ftruncate(memory.fd, 0),
        lambda: os.posix_fallocate(memory.fd, 0, 1 << 20),
        lambda: punch(memory),
    ):
        with pytest.raises(OSError):
            attack()
    assert sum(block.view) == 1  # all of it can be read, and the epoch is 1
    memory.close()


def punch(memory: Memory) -> None:
    """By the client's own writable mapping: MADV_REMOVE, which is a hole in the file."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    if libc.madvise(ctypes.addressof(memory.array), 4096, 9) != 0:
        raise OSError(ctypes.get_errno(), "madvise")


@pytest.mark.parametrize(("at", "num_bytes"), [(0, 8), (63, 1), (64, 4097), (4159, 2), (1 << 62, 1), (4160, 1)])
def test_no_part_reaches_into_the_header_or_beyond_the_end(at: int, num_bytes: int) -> None:
    memory = Memory(4096)
    block = map_block(memory.fd, memory.size, 1)
    with pytest.raises(WireError, match="not_lent"):
        block.part(at, num_bytes)
    assert len(block.part(64, 4096)) == 4096
    memory.close()
