import os
import socket
import struct
from collections.abc import Iterator

import pytest

from rankd.executors.apart.frames import MAX_MESSAGE_BYTES, receive, send
from rankd_client import memfd


@pytest.fixture
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


def test_messages_arrive_whole_and_in_order_one_of_them_with_a_descriptor(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    here, there = ends
    fd = memfd.create("test", 100)
    send(here, {"number": 1, "free": float("inf"), "bytes": b"\x00" * 1000})
    send(here, {"number": 2}, fd)
    send(here, {"number": 3})
    os.close(fd)
    assert receive(there) == ({"number": 1, "free": float("inf"), "bytes": b"\x00" * 1000}, None)
    message, descriptor = receive(there)
    assert message == {"number": 2} and descriptor is not None and os.fstat(descriptor).st_size == 100
    os.close(descriptor)
    assert receive(there) == ({"number": 3}, None)


@pytest.mark.parametrize(("sent", "error"), [(b"", EOFError), (b"\0\0", EOFError), (b"\0\0\0\7abc", EOFError)])
def test_an_end_is_told_wherever_it_comes(
    ends: tuple[socket.socket, socket.socket], sent: bytes, error: type[Exception]
) -> None:
    here, there = ends
    here.sendall(sent)
    here.close()
    with pytest.raises(error, match="the other end is gone"):
        receive(there)


def test_nothing_is_allocated_for_what_is_too_long(ends: tuple[socket.socket, socket.socket]) -> None:
    here, there = ends
    here.sendall(struct.pack("!I", MAX_MESSAGE_BYTES + 1))
    with pytest.raises(ValueError, match=f"expected at most {MAX_MESSAGE_BYTES}"):
        receive(there)
