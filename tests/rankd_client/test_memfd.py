"""Memory for two processes: what the seals forbid, when a mapping ends, and what a forked child keeps."""

from __future__ import annotations

import fcntl
import mmap
import os
import socket
from pathlib import Path

import pytest

from rankd_client import memfd

SIZE = 3 * mmap.PAGESIZE


def sealed() -> tuple[memfd.Bytes, int]:
    fd = memfd.create("rankd-test", SIZE)
    array = memfd.map_bytes(SIZE, fd)
    memfd.seal(fd)
    memfd.close_with(array, fd)
    return array, fd


def is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def num_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("memfd:rankd-test")


def test_a_sealed_memfd_is_written_by_its_first_mapping_alone() -> None:
    array, fd = sealed()
    assert memfd.is_sealed(fd)
    other = memfd.map_bytes(SIZE, fd, writable=False)
    array[SIZE - 1] = 7
    assert other[SIZE - 1] == 7
    for forbidden in (
        lambda: os.ftruncate(fd, SIZE - 1),
        lambda: os.ftruncate(fd, SIZE + 1),
        lambda: os.write(fd, b"x"),
        lambda: memfd.map_bytes(SIZE, fd),
        lambda: fcntl.fcntl(fd, 1033, 0x08),  # F_SEAL_WRITE: no further seals
    ):
        with pytest.raises(OSError):
            forbidden()


def test_what_lacks_a_seal_or_is_no_memfd_is_not_sealed(tmp_path: Path) -> None:
    fd = memfd.create("rankd-test", SIZE)
    assert not memfd.is_sealed(fd)
    fcntl.fcntl(fd, 1033, memfd.SEALS & ~0x02)
    assert not memfd.is_sealed(fd)
    os.close(fd)
    with (tmp_path / "file").open("wb") as file:
        assert not memfd.is_sealed(file.fileno())


def test_a_mapping_ends_with_the_last_view_of_it_and_closes_its_descriptor() -> None:
    before = num_mappings()
    array, fd = sealed()
    view = memoryview(array).cast("B")[10:20]
    del array
    view[0] = 1
    assert num_mappings() == before + 1
    assert is_open(fd)
    del view
    assert num_mappings() == before
    assert not is_open(fd)


def test_a_forked_child_keeps_neither_descriptors_nor_connections_and_unmaps_nothing() -> None:
    array, fd = sealed()
    here, there = socket.socketpair()
    memfd.close_in_children(here)
    there.settimeout(30)
    pid = os.fork()
    if pid == 0:  # nothing of pytest's may run here
        code = 1
        try:
            kept = is_open(fd) or here.fileno() >= 0
            del array
            code = int(kept or num_mappings() == 0)
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert is_open(fd)
    array[0] = 1
    here.close()
    assert there.recv(1) == b""  # the child had no copy of the other end
    there.close()


def test_memory_of_ones_own_needs_no_memfd() -> None:
    array = memfd.map_bytes(SIZE)
    memfd.advise(array, "MADV_DONTFORK", "MADV_NO_SUCH_ADVICE")
    array[0] = 1
    assert len(array) == SIZE


def test_more_than_there_is_raises() -> None:
    with pytest.raises(OSError, match="mapping"):
        memfd.map_bytes(1 << 60)
