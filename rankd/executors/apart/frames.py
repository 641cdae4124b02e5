"""What goes between the daemon and a process that measures for it: messages, and with some of them the descriptor of
memory that both map. Matrices go by that memory.

    daemon → process: {"device", "settings", "level"}, then batches: {"buffer", "works", "ranges"}
    process → daemon: {"free_bytes"} when it is ready or {"failed"}, then {"outcomes", "free_bytes", "fault"}
    and in each of these "log": [level, logger, text] of what the process would have logged
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from rankd.executors.frames import LENGTH, framed, read_message

MAX_MESSAGE_BYTES = 256 << 20
"""A part of a fused weight is a row of some kB, there are up to 1,024 parts, and 32 weights in a batch."""


def send(end: socket.socket, message: Mapping[str, Any], descriptor: int | None = None) -> None:
    """Blocks until all is on its way. OSError where the other end is gone."""
    data = framed(message)
    begun = 0 if descriptor is None else socket.send_fds(end, [data[: LENGTH.size]], [descriptor])
    end.sendall(data[begun:])


def receive(end: socket.socket) -> tuple[dict[str, Any], int | None]:
    """The next message and the descriptor that came with it. Raises as `read_message` does."""
    head, descriptors, _, _ = socket.recv_fds(end, LENGTH.size, 1)
    return read_message(end, MAX_MESSAGE_BYTES, head), descriptors[0] if descriptors else None
