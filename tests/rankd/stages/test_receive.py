import asyncio
import contextlib
import os
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.asyncio
from router import Router

from rankd.config import Limits
from rankd.door import Door
from rankd.stages.receive import Receive
from rankd.streams import Streams
from rankd_client.endpoints import endpoints_of
from rankd_client.wire import (
    MIN_CHUNK_BYTES,
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Heartbeat,
    Hello,
    Message,
    Plan,
    Refusal,
    Welcome,
    WireError,
    decode,
    encode,
)

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
        self.receive = Receive(
            self.router.socket,
            Limits(**limits),
            Streams(STREAM_ID),
            lambda: self.now,
            self.counters,
            lambda run: self.firing,
            Door(),
        )
        self.taken: list[Chunk] = []
        self.clients = zmq.asyncio.Context()

    async def intake(self, give_credit: bool) -> None:
        while True:
            peer, chunk = await self.receive.next()
            self.taken.append(chunk)
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


async def test_greets_takes_and_gives_credit(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        assert await client.ask(hello()) == Welcome(STREAM_ID, CREDIT, CREDIT, 1.0)
        assert side.receive.runs == {"r"}
        assert await client.ask(chunk(8)) == Ack("received", "w", 1, "weight", 8)
        await client.say(Heartbeat())
        side.receive.notify("another", AlertNotice({"n": 1}))
        side.receive.notify("r", AlertNotice({"n": 2}))
        assert await client.hear() == AlertNotice({"n": 2})
        side.receive.heartbeat()
        assert await client.hear() == Heartbeat()
        side.receive.goodbye()
        assert await client.hear() == Bye()
        assert [bytes(item.payload) for item in side.taken] == [bytes(8)]
        assert side.counters["num_received_bytes"] == 8 and side.receive.runs == set()


@pytest.mark.parametrize("message", [chunk(), Heartbeat()])
async def test_no_hello(socket_dir: Path, message: Message) -> None:
    async with serving(socket_dir) as side:
        answer = await side.connect().ask(message)
        assert isinstance(answer, Refusal) and (answer.code, answer.layer) == ("no_hello", None)
        assert side.taken == []


@pytest.mark.parametrize(
    "message", [Welcome(STREAM_ID, 1, CREDIT, 1.0), Plan(), Ack("received", "w", 1), Refusal("x", ""), AlertNotice({})]
)
@pytest.mark.parametrize("greeted", [True, False])
async def test_wrong_direction(socket_dir: Path, message: Message, greeted: bool) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        if greeted:
            await client.ask(hello())
        answer = await client.ask(message)
        assert isinstance(answer, Refusal) and answer.code == "wrong_direction"


async def test_credit_exceeded_ends_the_greeting(socket_dir: Path) -> None:
    async with serving(socket_dir, give_credit=False) as side:
        client = side.connect()
        await client.ask(hello())
        await client.say(chunk(8))
        answer = await client.ask(chunk(CREDIT, step=2))
        assert isinstance(answer, Refusal) and (answer.code, answer.layer) == ("credit_exceeded", None)
        answer = await client.ask(chunk(4, step=3))
        assert isinstance(answer, Refusal) and answer.code == "no_hello"
        assert isinstance(await client.ask(hello()), Welcome), "and it may begin anew"
        assert [item.step for item in side.taken] == [1]


async def test_too_many_connections(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        first, second = side.connect(), side.connect()
        await first.ask(hello())
        answer = await second.ask(hello(session=b"t" * 16))
        assert isinstance(answer, Refusal) and answer.code == "too_many_connections"
        await first.say(Bye())
        while side.receive.runs:  # noqa: ASYNC110
            await asyncio.sleep(0)
        assert isinstance(await second.ask(hello(session=b"t" * 16)), Welcome)


async def test_who_comes_back_hears_what_fires(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        side.firing.append({"alert_id": "x", "state": "firing", "run": "r"})
        client = side.connect()
        assert isinstance(await client.ask(hello()), Welcome)
        assert await client.hear() == AlertNotice(side.firing[0])


async def test_later_connections_get_less_credit_rather_than_none(socket_dir: Path) -> None:
    default = Limits()
    limits = {key: getattr(default, key) for key in ("chunk_bytes", "credit_bytes", "total_credit_bytes")}
    async with serving(socket_dir, **limits) as side:
        welcomes = []
        for number in range(72):
            answer = await side.connect().ask(hello(session=bytes([number]) * 16))
            assert isinstance(answer, Welcome), f"connection {number}: {answer}"
            welcomes.append(answer)
    granted = [welcome.credit_bytes for welcome in welcomes]
    assert granted[0] == default.credit_bytes and granted == sorted(granted, reverse=True)
    assert sum(granted) <= default.total_credit_bytes
    assert all(MIN_CHUNK_BYTES <= welcome.chunk_bytes <= welcome.credit_bytes for welcome in welcomes)


async def test_a_session_that_reconnects_takes_its_place_along(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        old, new = side.connect(), side.connect()
        await old.ask(hello())
        assert isinstance(await new.ask(hello()), Welcome), "there is credit for one connection only"
        side.receive.acknowledge([b"s" * 16, b"unknown, 16 byte"], Ack("recorded", "w", 1))
        assert await new.hear() == Ack("recorded", "w", 1)
        answer = await old.ask(chunk())
        assert isinstance(answer, Refusal) and answer.code == "no_hello"


async def test_a_refused_snapshot_gives_its_credit_back(socket_dir: Path) -> None:
    side = Side(socket_dir)
    try:
        client = side.connect()
        await client.say(hello())
        await client.say(chunk(8))
        peer, item = await asyncio.wait_for(side.receive.next(), 30)
        assert peer.credit_bytes == CREDIT - 8
        side.receive.refuse(peer.identity, WireError("chunk_order", "told"), item)
        assert peer.credit_bytes == CREDIT
        assert isinstance(await client.hear(), Welcome)
        assert await client.hear() == Refusal("chunk_order", "told", "w", 1, "weight", 8)
    finally:
        side.clients.destroy(linger=0)
        side.router.close()


def garbage() -> list[list[bytes]]:
    header, payload = (bytes(frame) for frame in encode(chunk()))
    kinds = [
        b"",
        b"\xc1",
        b"\x80",
        b"\x90",
        os.urandom(300),
        b"\xdf\xff\xff\xff\xff",
        b"\x81\xa1t\xa5hello",
        b"\x91" * 5000,
    ]
    return [
        *([frame] for frame in kinds),
        *([header[:end], payload] for end in range(0, len(header), 7)),
        [header],
        [header, payload, b""],
        [header, b""],
        [header, payload + b"\0"],
        [header, bytes(MIN_CHUNK_BYTES)],
        [b"x" * (64 << 10), payload],
        [b"x" * ((64 << 10) + 1)],
        [b""] * 20_000,
    ]


async def test_garbage_is_refused_and_the_loop_goes_on(socket_dir: Path) -> None:
    async with serving(socket_dir, total_credit_bytes=2 * CREDIT) as side:
        hostile, honest = side.connect(), side.connect()
        await honest.ask(hello(session=b"t" * 16))
        for greeted in (False, True):
            for frames in garbage():
                await hostile.socket.send_multipart(frames)
                answer = await hostile.hear()
                assert isinstance(answer, Refusal) and answer.layer is None, frames[0][:40]
            if not greeted:
                assert isinstance(await hostile.ask(hello()), Welcome)
        assert side.counters["num_refused_frame_count"] >= 2 and side.taken == []
        assert isinstance(await honest.ask(chunk()), Ack)


async def test_a_flood_leaves_the_others_their_turn(socket_dir: Path) -> None:
    """Were it not so, nothing would stop a daemon whose peer sends without end: SIGTERM waits for its turn as well."""
    side = Side(socket_dir)
    client = side.connect()
    await client.say(hello())
    for step in range(100):
        await client.say(chunk(step=step))
    turn = 0

    async def others() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    await asyncio.wait_for(side.router.socket.poll(), 30)
    counting = asyncio.create_task(others())
    turns = []
    try:
        for _ in range(100):
            await side.receive.next()
            turns.append(turn)
        assert len(set(turns)) == 100
    finally:
        counting.cancel()
        side.clients.destroy(linger=0)
        side.router.close()


async def test_silent_peers_are_forgotten_and_their_credit_given_back(socket_dir: Path) -> None:
    async with serving(socket_dir, peer_timeout_seconds=30.0) as side:
        silent, other = side.connect(), side.connect()
        await silent.ask(hello())
        side.now = 30.0
        side.receive.heartbeat()
        assert side.receive.runs == {"r"}
        side.now = 30.1
        side.receive.heartbeat()
        assert side.receive.runs == set()
        assert isinstance(await other.ask(hello("another", b"t" * 16)), Welcome)
        assert await silent.hear() == Heartbeat()
        answer = await silent.ask(Heartbeat())
        assert isinstance(answer, Refusal) and answer.code == "no_hello"


async def test_heartbeats_keep_a_peer(socket_dir: Path) -> None:
    async with serving(socket_dir, peer_timeout_seconds=30.0) as side:
        client = side.connect()
        await client.ask(hello())
        side.now = 29.0
        await client.say(Heartbeat())
        await client.ask(chunk())  # behind the heartbeat
        side.now = 58.0
        side.receive.heartbeat()
        assert side.receive.runs == {"r"}


async def test_an_answer_to_a_vanished_peer_is_counted(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        await client.ask(hello())
        client.socket.close(linger=0)
        async with asyncio.timeout(30):
            while not side.counters["dropped_answers"]:
                side.receive.acknowledge([b"s" * 16], Ack("recorded", "w", 1))
                await asyncio.sleep(0)
        side.receive.heartbeat()
        side.receive.goodbye()


async def test_a_peer_that_does_not_read_is_not_waited_for(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        client.socket.setsockopt(zmq.RCVHWM, 1)
        await client.ask(hello())
        notice = AlertNotice({"text": "x" * 4000})
        for _ in range(50_000):
            side.receive.notify("r", notice)
            if side.counters["dropped_answers"]:
                break
        assert side.counters["dropped_answers"]
