"""Both ends of a link: a daemon's push and arena sockets worked by hand, and an outbox whose link leads to them."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zmq

from rankd_client import memfd
from rankd_client.arena import Arena, Memory
from rankd_client.link import Link
from rankd_client.outbox import Outbox
from rankd_client.wire import (
    LOCAL_VERSION,
    MIN_CHUNK_BYTES,
    PROTOCOL_VERSION,
    Chunk,
    Handover,
    Heartbeat,
    Hello,
    Lend,
    Lent,
    Message,
    Taken,
    Welcome,
    decode,
    decode_handover,
    encode,
    encode_handover,
)

MIB = 1 << 20
PATIENCE_SECONDS = 10.0
DOOR: dict[str, Any] = {"arena_socket": "arena.sock", "arena_token": "a token"}
"""Of a welcome: memory may be lent there."""


class Router:
    """A daemon's push socket, worked by hand."""

    def __init__(self, address: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(address)
        self.peer = b""

    def receive(self, *, beats: bool = False) -> Message:
        """The next message (heartbeats left out unless `beats`); fails the test if none comes."""
        while True:
            assert self.socket.poll(1000 * PATIENCE_SECONDS), "nothing came"
            self.peer, *frames = self.socket.recv_multipart()
            message = decode(frames, LOCAL_VERSION)
            if beats or not isinstance(message, Heartbeat):
                return message

    def chunk(self) -> Chunk:
        message = self.receive()
        assert isinstance(message, Chunk)
        return message

    def lent(self) -> Lent:
        message = self.receive()
        assert isinstance(message, Lent), message
        return message

    def silent(self, seconds: float = 0.2) -> bool:
        return not self.socket.poll(1000 * seconds)

    def send(self, *messages: Message) -> None:
        for message in messages:
            self.socket.send_multipart([self.peer, *encode(message)])

    def send_raw(self, *frames: bytes) -> None:
        self.socket.send_multipart([self.peer, *frames])

    def welcome(self, credit_bytes: int = 64 * MIB, **fields: Any) -> Hello:
        """Answer the hello that is due."""
        hello = self.receive()
        assert isinstance(hello, Hello)
        values = {"chunk_bytes": MIN_CHUNK_BYTES, "heartbeat_seconds": 60.0, "version": hello.version, **fields}
        self.send(Welcome("00" * 8, credit_bytes, **values))
        return hello

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class ArenaDoor:
    """A daemon's arena socket, worked by hand, and what was lent by it."""

    def __init__(self, path: Path) -> None:
        self._listening = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listening.bind(str(path))
        self._listening.listen(1)
        self._listening.settimeout(PATIENCE_SECONDS)
        self._peer: socket.socket | None = None
        self.blocks: list[memoryview] = []

    def hear(self) -> Lend:
        """The next packet, with its blocks mapped."""
        if self._peer is None:
            self._peer, _ = self._listening.accept()
            self._peer.settimeout(PATIENCE_SECONDS)
        packet, fds, _, _ = socket.recv_fds(self._peer, 4096, 16)
        lend = decode_handover(packet)
        assert isinstance(lend, Lend) and len(fds) == len(lend.sizes)
        for fd, size in zip(fds, lend.sizes, strict=True):
            self.blocks.append(memoryview(memfd.map_bytes(size, fd, writable=False)).cast("B"))
            assert memfd.is_sealed(fd)
            os.close(fd)
        return lend

    def take(self) -> Lend:
        """Hear the next packet, and say yes."""
        lend = self.hear()
        self.say(Taken(len(self.blocks)))
        return lend

    def say(self, message: Handover) -> None:
        assert self._peer is not None
        self._peer.send(encode_handover(message))

    def read(self, lent: Lent) -> bytes:
        return bytes(self.blocks[lent.block][lent.at : lent.at + lent.num_bytes])

    def epochs(self) -> list[int]:
        return [block[:8].cast("Q")[0] for block in self.blocks]

    def has_left(self) -> bool:
        """Waits for the client's end of the connection."""
        assert self._peer is not None
        return self._peer.recv(1) == b""

    def hang_up(self) -> None:
        """Only of this connection; its mappings stay, as those of a daemon that was stopped."""
        assert self._peer is not None
        self._peer.close()
        self._peer = None

    def close(self) -> None:
        self._listening.close()
        if self._peer is not None:
            self._peer.close()


def lendable(num_bytes: int) -> Memory:
    """As `rankd_client.copies.allocate` makes it, without torch."""
    fd = memfd.create("rankd-test", num_bytes)
    array = memfd.map_bytes(num_bytes, fd)
    memfd.close_with(array, fd)
    memfd.seal(fd)
    view = memoryview(array).cast("B")
    view[:] = bytes(num_bytes)
    return Memory(view, fd=fd)


class Setup:
    """An outbox with a link to an address, and what the link told."""

    def __init__(
        self,
        address: str,
        arena_bytes: int = 32 * MIB,
        version: int = PROTOCOL_VERSION,
        newest: int = PROTOCOL_VERSION,
        allocate: Callable[[int], Memory] = lambda size: Memory(memoryview(bytearray(size))),
        max_bytes: int = 0,
    ) -> None:
        self.outbox = Outbox(Arena(max_bytes or arena_bytes, allocate))
        self.outbox.grow(arena_bytes, 1)
        self.alerts: list[dict[str, Any]] = []
        self.alerted = threading.Event()
        self.hello = Hello("run", bytes(range(16)), version, agent="test")
        self.link = Link(address, self.hello, self.outbox, self.take, newest=newest)
        self._deadline, self._idle = self.link._next_deadline, threading.Condition()
        self.link._next_deadline = self._tell_and_sleep
        self.link.start()

    def _tell_and_sleep(self) -> float:
        """The link's thread asks for how long it may sleep: all that it could do is done."""
        with self._idle:
            self._idle.notify_all()
        return self._deadline()

    def until(self, holds: Callable[[], bool]) -> None:
        """For what the link's thread does and nobody tells of: looks each time before that sleeps; fails the test if it
        never comes."""
        with self._idle:
            assert self._idle.wait_for(holds, PATIENCE_SECONDS), "it did not come"

    def take(self, alert: dict[str, Any]) -> None:
        self.alerts.append(alert)
        self.alerted.set()

    def put(self, layer: str, step: int, num_bytes: int = 32) -> bytes:
        snapshot = self.outbox.reserve(layer, step, num_bytes, (num_bytes // 2, 1))
        assert snapshot is not None
        content = os.urandom(16) * (num_bytes // 16)
        snapshot.region.view[:] = content
        snapshot.dtype, snapshot.source_dtype = "bfloat16", "float32"
        self.outbox.commit(snapshot)
        self.link.wake()
        return content
