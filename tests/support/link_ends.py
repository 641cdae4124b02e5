"""Both ends of a link: a daemon's push socket worked by hand, and an outbox whose link leads to it."""

from __future__ import annotations

import os
import threading
from typing import Any

import zmq

from rankd_client.arena import Arena, Memory
from rankd_client.link import Link
from rankd_client.outbox import Outbox
from rankd_client.wire import (
    LOCAL_VERSION,
    MIN_CHUNK_BYTES,
    PROTOCOL_VERSION,
    Chunk,
    Heartbeat,
    Hello,
    Message,
    Welcome,
    decode,
    encode,
)

MIB = 1 << 20
PATIENCE_SECONDS = 10.0


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
        values = {"chunk_bytes": MIN_CHUNK_BYTES, "heartbeat_seconds": 60.0, **fields}
        self.send(Welcome("00" * 8, credit_bytes, **values))
        return hello

    def close(self) -> None:
        self.socket.close()
        self.context.term()


class Setup:
    """An outbox with a link to an address, and what the link told."""

    def __init__(self, address: str, arena_bytes: int = 32 * MIB, version: int = PROTOCOL_VERSION) -> None:
        self.outbox = Outbox(Arena(arena_bytes, lambda size: Memory(memoryview(bytearray(size)))))
        self.outbox.grow(arena_bytes, 1)
        self.alerts: list[dict[str, Any]] = []
        self.alerted = threading.Event()
        self.hello = Hello("run", bytes(range(16)), version, agent="test")
        self.link = Link(address, self.hello, self.outbox, self.take)
        self.link.start()

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
