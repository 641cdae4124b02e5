"""Bytes as they come: in pieces, cut off, or claiming too much."""

import socket
from collections.abc import Iterator

import pytest

from rankd.executors.frames import framed, read_exactly, read_message

ONE = b"\0\0\0\4\x81\xa1a\x01"
"""{"a": 1}, which takes 4 bytes."""


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@pytest.mark.parametrize("num_read", [0, 1, 4])
def test_a_message_is_read_to_its_end_and_no_further(ends: tuple[socket.socket, socket.socket], num_read: int) -> None:
    here, there = ends
    assert framed({"a": 1}) == ONE
    here.sendall(ONE + b"more")
    assert read_message(there, 4, there.recv(num_read)) == {"a": 1}
    assert bytes(read_exactly(there, 0)) == b"" and bytes(read_exactly(there, 4)) == b"more"


@pytest.mark.parametrize("num_sent", [0, 2, 4, 7])
def test_an_end_is_told_wherever_it_comes(ends: tuple[socket.socket, socket.socket], num_sent: int) -> None:
    here, there = ends
    here.sendall(ONE[:num_sent])
    here.close()
    with pytest.raises(EOFError, match="the other end is gone"):
        read_message(there, 4)


def test_nothing_is_allocated_for_what_is_too_long(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    here.sendall(b"\xff\xff\xff\xff")
    with pytest.raises(ValueError, match="a message of 4294967295 bytes; expected at most 4294967294"):
        read_message(there, 0xFFFFFFFE)
