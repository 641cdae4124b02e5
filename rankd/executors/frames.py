"""What messages between the daemon and its processes have in common: msgpack behind its length, 4 bytes, read from a
stream socket. Nothing that is read here is unpickled."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

import msgpack
import numpy as np

from rankd.executors.packed import Array

LENGTH = struct.Struct("!I")


def framed(message: Mapping[str, Any]) -> bytes:
    body: bytes = msgpack.packb(message)
    return LENGTH.pack(len(body)) + body


def read_message(end: socket.socket, max_bytes: int, head: bytes = b"") -> dict[str, Any]:
    """The next one, whose first bytes, `head`, have been read. EOFError at the end, OSError (TimeoutError) where none
    comes in time, ValueError for one of more than `max_bytes`, for which no room is made."""
    (length,) = LENGTH.unpack(head + read_exactly(end, LENGTH.size - len(head)).data)
    if length > max_bytes:
        raise ValueError(f"a message of {length} bytes; expected at most {max_bytes}")
    message: dict[str, Any] = msgpack.unpackb(read_exactly(end, length).data)
    return message


def read_exactly(end: socket.socket, num_bytes: int) -> Array:
    array = np.empty(num_bytes, np.uint8)
    view, got = array.data, 0
    while got < num_bytes:
        if not (count := end.recv_into(view[got:])):
            raise EOFError("the other end is gone")
        got += count
    return array
