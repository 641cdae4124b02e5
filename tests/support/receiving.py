"""A Receive on a real ROUTER, and clients that speak the wire to it."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import zmq
import zmq.asyncio
from router import Router

from rankd.config import Limits
from rankd.door import Door
from rankd.lent import Lenders
from rankd.stages.receive import Receive
from rankd.streams import Streams
from rankd_client.endpoints import endpoints_of
from rankd_client.wire import MIN_CHUNK_BYTES, Chunk, Hello, Message, decode, encode

STREAM_ID = "0123456789abcdef"
CREDIT = MIN_CHUNK_BYTES


class Side:
    """The daemon's side: a Receive on a real ROUTER, a clock that stands still, and what it handed on."""

    def __init__(self, directory: Path, **limits: Any) -> None:
        endpoints = endpoints_of(f"ipc://{directory}")
        limits = {"chunk_bytes": CREDIT, "credit_bytes": CREDIT, "total_credit_bytes": CREDIT, **limits}
        self.now = 0.0
        self.counters: Counter[str] = Counter()
        self.router = Router(endpoints.push, send_hwm=10_000)
        self.address = endpoints.push
        self.firing: list[dict[str, Any]] = []
        self.lenders = Lenders(Limits(**limits), self.counters, "arena.sock")
        self.receive = Receive(
            self.router.socket,
            Limits(**limits),
            Streams(STREAM_ID),
            lambda: self.now,
            self.counters,
            lambda run: self.firing,
            Door(),
            lenders=self.lenders,
        )
        self.taken: list[Chunk] = []
        self.copied: list[bytes] = []
        """Their payloads, which are the daemon's no longer than until it gives credit."""
        self.clients = zmq.asyncio.Context()

    async def intake(self, give_credit: bool) -> None:
        while True:
            peer, chunk = await self.receive.next()
            self.taken.append(chunk)
            self.copied.append(bytes(chunk.payload) if isinstance(chunk, Chunk) else b"")
            if give_credit:
                self.receive.give_credit(peer, chunk)

    def connect(self, routing_id: bytes = b"") -> "Client":
        return Client(self.clients, self.address, routing_id)


class Client:
    def __init__(self, context: zmq.asyncio.Context, address: str, routing_id: bytes) -> None:
        self.socket = context.socket(zmq.DEALER)
        if routing_id:
            self.socket.setsockopt(zmq.ROUTING_ID, routing_id)
        self.socket.connect(address)

    async def say(self, message: Message) -> None:
        await self.socket.send_multipart(encode(message))

    async def hear(self) -> Message:
        return decode(await asyncio.wait_for(self.socket.recv_multipart(), 30))

    async def ask(self, message: Message) -> Message:
        await self.say(message)
        return await self.hear()


@contextlib.asynccontextmanager
async def serving(directory: Path, give_credit: bool = True, **limits: Any) -> AsyncIterator[Side]:
    side = Side(directory, **limits)
    task = asyncio.create_task(side.intake(give_credit))
    try:
        yield side
        assert not task.done(), "a peer's fault must not end the loop"
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        side.clients.destroy(linger=0)
        side.router.close()


def hello(run: str = "r", session: bytes = b"s" * 16) -> Hello:
    return Hello(run, session)


def chunk(num_bytes: int = 4, step: int = 1) -> Chunk:
    return Chunk("w", step, "float32", (1, num_bytes // 4), num_bytes, 0, bytes(num_bytes))
