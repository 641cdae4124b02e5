"""What goes between the daemon and its Ray driver, a process of its own on the same host: a message in msgpack, then
arrays as raw bytes. Nothing that is read here is unpickled.

    length of the message, 4 bytes | message: a map, whose "sizes" tells the arrays' bytes | the arrays, one by one
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import numpy as np

from rankd.executors.packed import Array

MAX_MESSAGE_BYTES = 64 << 20
"""A fused weight has some parts of some kB each; nothing comes near it."""

_LENGTH = struct.Struct("!I")


def send(end: socket.socket, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Blocks until all is on its way. OSError where the other end is gone."""
    head = msgpack.packb({**message, "sizes": [array.nbytes for array in arrays]})
    end.sendall(_LENGTH.pack(len(head)) + head)
    for array in arrays:
        end.sendall(array.data)


def receive(end: socket.socket) -> tuple[dict[str, Any], list[Array]]:
    """The next message and its arrays. EOFError at the end, OSError (TimeoutError) where none comes in time, ValueError
    for what is no message."""
    (length,) = _LENGTH.unpack(_exactly(end, _LENGTH.size).data)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes; expected at most {MAX_MESSAGE_BYTES}")
    message = msgpack.unpackb(_exactly(end, length).data)
    return message, [_exactly(end, size) for size in message.pop("sizes")]


def _exactly(end: socket.socket, num_bytes: int) -> Array:
    array = np.empty(num_bytes, np.uint8)
    view, got = array.data, 0
    while got < num_bytes:
        if not (count := end.recv_into(view[got:])):
            raise EOFError("the other end is gone")
        got += count
    return array
