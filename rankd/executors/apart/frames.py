"""What goes between the daemon and a process that measures for it: messages in msgpack, each behind its length, and
with some of them the descriptor of memory that both map. Matrices go by that memory.

    daemon → process: {"device", "settings", "level"}, then batches: {"buffer", "works", "ranges"}
    process → daemon: {"free_bytes"} when it is ready or {"failed"}, then {"outcomes", "free_bytes", "fault"}
    and in each of these "log": [level, logger, text] of what the process would have logged
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from typing import Any

import msgpack

MAX_MESSAGE_BYTES = 256 << 20
"""A part of a fused weight is a row of some kB, there are up to 1,024 parts, and 32 weights in a batch."""

_LENGTH = struct.Struct("!I")


def send(end: socket.socket, message: Mapping[str, Any], descriptor: int | None = None) -> None:
    """Blocks until all is on its way. OSError where the other end is gone."""
    body = msgpack.packb(message)
    head = _LENGTH.pack(len(body))
    if descriptor is None:
        end.sendall(head + body)
    else:
        socket.send_fds(end, [head], [descriptor])
        end.sendall(body)


def receive(end: socket.socket) -> tuple[dict[str, Any], int | None]:
    """The next message and the descriptor that came with it. EOFError at the end, OSError (TimeoutError) where none
    comes in time, ValueError for what is no message."""
    head, descriptors, _, _ = socket.recv_fds(end, _LENGTH.size, 1)
    head += _exactly(end, _LENGTH.size - len(head)) if head else b""
    if not head:
        raise EOFError("the other end is gone")
    (length,) = _LENGTH.unpack(head)
    if length > MAX_MESSAGE_BYTES:
        raise ValueError(f"a message of {length} bytes; expected at most {MAX_MESSAGE_BYTES}")
    return msgpack.unpackb(_exactly(end, length)), descriptors[0] if descriptors else None


def _exactly(end: socket.socket, num_bytes: int) -> bytes:
    found = bytearray(num_bytes)
    view, got = memoryview(found), 0
    while got < num_bytes:
        if not (count := end.recv_into(view[got:])):
            raise EOFError("the other end is gone")
        got += count
    return bytes(found)
