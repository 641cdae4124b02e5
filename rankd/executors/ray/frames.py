"""What goes between the daemon and its Ray driver, a process of its own on the same host: a message, whose "sizes"
tells the bytes of the arrays that follow it, one by one."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence
from typing import Any

from rankd.executors.frames import framed, read_exactly, read_message
from rankd.executors.packed import Array

MAX_MESSAGE_BYTES = 64 << 20
"""A fused weight has some parts of some kB each; nothing comes near it."""


def send(end: socket.socket, message: Mapping[str, Any], arrays: Sequence[Array] = ()) -> None:
    """Blocks until all is on its way. OSError where the other end is gone."""
    end.sendall(framed({**message, "sizes": [array.nbytes for array in arrays]}))
    for array in arrays:
        end.sendall(array.data)


def receive(end: socket.socket) -> tuple[dict[str, Any], list[Array]]:
    """The next message and its arrays. Raises as `read_message` does."""
    message = read_message(end, MAX_MESSAGE_BYTES)
    return message, [read_exactly(end, size) for size in message.pop("sizes")]
