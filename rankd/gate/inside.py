"""The way in to libzmq, taken so that each of its messages tells by which connection it came."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterable
from pathlib import Path

import zmq

from rankd.gate.connection import Connection

MAX_LET_IN = 10_000
"""Addresses and users of which it is remembered when they were let in last."""

SEND_BUFFER_BYTES = 1 << 20
"""What may wait in the kernel for libzmq to read it; the kernel gives what it has. Smaller ones cost more turns."""


class Inside:
    """Each connection has a name of its own in `directory`, there for a moment. It is what `getpeername` says at
    libzmq's end, whose descriptor comes with every message.

    `connection` may be called from any thread, the others from the gate's alone.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._num_names = 0
        self._by_name: dict[str, Connection] = {}
        self._let_in: dict[str, int] = {}

    def connect(self, connection: Connection) -> bool:
        """Connect it to libzmq; False where there is no room in the backlog. Raises OSError where nobody listens."""
        self._num_names += 1
        name = f"{self._directory}/{self._num_names}"
        inner = socket.socket(socket.AF_UNIX)
        try:
            inner.setblocking(False)
            inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            inner.bind(name)
            inner.connect(connection.listener.inner_path)
        except BlockingIOError:
            inner.close()
            return False
        except OSError:
            inner.close()
            raise
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)  # noqa: PTH108
        connection.inner, connection.inner_name = inner, name
        self._by_name[name] = connection
        self._let_in[connection.peer] = self._num_names
        return True

    def by_turns(self, waiting: Iterable[Connection]) -> list[Connection]:
        """First those whose address (or user) was let in longest ago: however many one address sends, another waits for
        one of them."""
        if len(self._let_in) > MAX_LET_IN:
            self._let_in.clear()
        return sorted(waiting, key=lambda connection: self._let_in.get(connection.peer, 0))

    def connection(self, frame: zmq.Frame) -> Connection | None:
        """The connection by which a frame came that was just received (copy=False); None for one of no peer's."""
        try:
            fd = int(frame.get("__fd"))
        except (zmq.ZMQError, ValueError):
            return None
        # Asked each time: the number of a descriptor that libzmq closed by itself soon names another connection's. And
        # without a duplicate, for which there may be no room.
        try:
            inner = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM, 0, fileno=fd)
            try:
                return self._by_name.get(str(inner.getpeername()))
            finally:
                inner.detach()
        except OSError:  # closed meanwhile
            return None

    def forget(self, connection: Connection) -> None:
        """No message is its own from now on."""
        self._by_name.pop(connection.inner_name, None)
