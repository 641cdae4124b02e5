"""A gate before a real libzmq socket, and raw peers of it."""

from __future__ import annotations

import dataclasses
import socket
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from rankd.gate import Connection, Gate, GateLimits, push_limits

WAIT_SECONDS = 30
SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING_REST = b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)


def ready(kind: bytes = b"DEALER", more: bytes = b"") -> bytes:
    body = b"\x05READY\x0bSocket-Type" + len(kind).to_bytes(4, "big") + kind + more
    return b"\x04" + bytes([len(body)]) + body


LIMITS = dataclasses.replace(push_limits(16 << 20, 64 << 20), handshake_seconds=WAIT_SECONDS)
"""Patient with peers that are slow because the machine is."""


class Noticed(Counter[str]):
    """`changed` is notified of each change."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Condition()

    def __setitem__(self, key: str, value: int) -> None:
        with self.changed:
            super().__setitem__(key, value)
            self.changed.notify_all()


class Served:
    """A gate before one libzmq socket, whose messages are taken by hand."""

    def __init__(self, directory: Path, context: zmq.Context[Any], limits: GateLimits, kind: int, tcp: bool) -> None:
        self.context = context
        self.dealers: list[zmq.Socket[Any]] = []
        self.counters = Noticed()
        self.faults: list[tuple[str, str | None]] = []
        self.crashes: list[BaseException] = []
        self.gate = Gate(directory, self.counters, lambda *fault: self.faults.append(fault), self._crash)
        self.socket = context.socket(kind)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVHWM, 8)
        self.socket.setsockopt(zmq.RCVTIMEO, WAIT_SECONDS * 1000)
        if kind == zmq.XPUB:
            self.socket.setsockopt(zmq.XPUB_MANUAL, 1)
        inner = f"{directory}/inner"
        self.socket.bind(f"ipc://{inner}")
        bound = socket.socket(socket.AF_INET if tcp else socket.AF_UNIX)
        bound.bind(("127.0.0.1", 0) if tcp else f"{directory}/outer")
        self.where = bound.getsockname()
        self.address = f"tcp://127.0.0.1:{self.where[1]}" if tcp else f"ipc://{self.where}"
        self.gate.listen("push", bound, inner, "NULL", limits)
        self.gate.start()

    def take(self) -> tuple[Connection | None, list[bytes]]:
        """The next message, and whose it is."""
        frames = self.socket.recv_multipart(copy=False)
        if self.socket.type == zmq.ROUTER:
            del frames[0]
        connection = self.gate.connection(frames[-1])
        if connection is not None:
            self.gate.delivered(connection, len(frames))
        return connection, [frame.bytes for frame in frames]

    def raw(self) -> socket.socket:
        peer = socket.socket(socket.AF_INET if isinstance(self.where, tuple) else socket.AF_UNIX)
        peer.settimeout(WAIT_SECONDS)
        peer.connect(self.where)
        return peer

    def greeted(self) -> socket.socket:
        """A raw peer whose handshake is through."""
        peer = self.raw()
        for piece in (SIGNATURE, GREETING_REST, ready(b"DEALER" if self.socket.type == zmq.ROUTER else b"SUB")):
            peer.sendall(piece)
        answer = b""
        while b"Socket-Type" not in answer:
            answer += (more := peer.recv(1000))
            assert more, "cut off"
        return peer

    def dealer(self) -> zmq.Socket[Any]:
        """An honest peer."""
        self.dealers.append(self.context.socket(zmq.DEALER))
        self.dealers[-1].setsockopt(zmq.RCVTIMEO, WAIT_SECONDS * 1000)
        self.dealers[-1].connect(self.address)
        return self.dealers[-1]

    def eventually(self, holds: Callable[[], object]) -> None:
        """Wait until it holds, of what the gate has counted or crashed with."""
        with self.counters.changed:
            assert self.counters.changed.wait_for(holds, WAIT_SECONDS)

    def _crash(self, error: BaseException) -> None:
        with self.counters.changed:
            self.crashes.append(error)
            self.counters.changed.notify_all()

    def close(self) -> None:
        for dealer in self.dealers:
            dealer.close(linger=0)
        self.gate.stop_accepting()
        self.socket.close(linger=0)
        self.gate.close(0.5)
        assert self.crashes == []


def was_cut(peer: socket.socket) -> bool:
    """Whether the other side ends the connection."""
    try:
        while peer.recv(65536):
            pass
    except ConnectionError:
        pass
    return True
