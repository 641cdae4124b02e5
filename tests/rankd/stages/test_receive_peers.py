"""Peers that break the protocol, flood it, do not read or are gone: the others have their turn."""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import zmq
from receiving import CREDIT, STREAM_ID, Client, Side, chunk, hello, serving

from rankd.conduct import MAX_FAULTS, MAX_HELLOS
from rankd.peers import Peer
from rankd_client.wire import (
    MIN_CHUNK_BYTES,
    Ack,
    AlertNotice,
    Bye,
    Heartbeat,
    Message,
    Plan,
    Refusal,
    Welcome,
    WireError,
    encode,
)


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
        assert side.receive.runs() == {"r"}
        side.now = 30.1
        assert side.receive.heartbeat() == [] and side.receive.runs() == {"r"}, "what it said last may be unread"
        assert side.receive.heartbeat() == [b"s" * 16] and side.receive.runs() == set()
        assert isinstance(await other.ask(hello("another", b"t" * 16)), Welcome)
        assert await silent.hear() == Heartbeat()
        answer = await silent.ask(Heartbeat())
        assert isinstance(answer, Refusal) and answer.code == "no_hello"


async def test_who_is_heard_once_more_after_a_standstill_of_the_daemon_is_not_gone(socket_dir: Path) -> None:
    async with serving(socket_dir, peer_timeout_seconds=30.0) as side:
        client = side.connect()
        await client.ask(hello())
        for hour in range(1, 4):
            side.now = 3600.0 * hour
            assert side.receive.heartbeat() == []
            await client.ask(chunk(step=hour))
        assert side.receive.heartbeat() == [] and side.receive.runs() == {"r"}


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


@contextlib.asynccontextmanager
async def greeted(directory: Path) -> AsyncIterator[tuple[Side, Peer]]:
    """A side, and a peer of which one chunk was taken."""
    side = Side(directory)
    try:
        client = side.connect()
        await client.say(hello())
        await client.say(chunk())
        peer, _ = await asyncio.wait_for(side.receive.next(), 30)
        yield side, peer
    finally:
        side.clients.destroy(linger=0)
        side.router.close()


@pytest.mark.parametrize("code", ["shard_conflict", "chunk_order"])
async def test_who_goes_on_sending_what_fits_nothing_is_cut_off(socket_dir: Path, code: str) -> None:
    async with greeted(socket_dir) as (side, peer):
        for number in range(MAX_FAULTS):
            assert side.receive.runs() == {"r"}, number
            side.receive.refuse_chunk(peer, chunk(step=number), WireError(code, ""))
        assert side.receive.runs() == set()


@pytest.mark.parametrize(
    "code", ["assembly_full", "quota_exceeded", "too_many_runs", "too_many_layers", "layer_too_large"]
)
async def test_who_finds_no_room_is_not_cut_off(socket_dir: Path, code: str) -> None:
    """Nor for the chunks of the same snapshot that were on their way."""
    async with greeted(socket_dir) as (side, peer):
        for number in range(MAX_FAULTS):
            for refused in (code, "chunk_order", "chunk_order"):
                side.receive.refuse_chunk(peer, chunk(step=number), WireError(refused, ""))
        assert side.receive.runs() == {"r"}
        for _ in range(MAX_FAULTS):
            side.receive.refuse_chunk(peer, chunk(step=MAX_FAULTS - 1), WireError("shard_conflict", ""))
        assert side.receive.runs() == set()


async def heard_until_ack(client: Client) -> list[str]:
    """The names of the messages that come before the answer to a chunk that is sent now."""
    await client.say(chunk())
    names: list[str] = []
    while not isinstance(message := await client.hear(), Ack):
        names.append(type(message).__name__)
    return names


async def test_what_fires_is_told_once_to_a_connection_however_often_it_says_hello(socket_dir: Path) -> None:
    async with serving(socket_dir, total_credit_bytes=2 * CREDIT) as side:
        side.firing.append({"alert_id": "x", "state": "firing", "run": "r"})
        client = side.connect()
        greetings: list[Message] = [hello(), hello(), hello(session=b"t" * 16), Bye(), hello()]
        for message in greetings:
            await client.say(message)
        assert await heard_until_ack(client) == ["Welcome", "AlertNotice", "Welcome", "Welcome", "Welcome"]
        side.receive.heartbeat()
        await client.say(hello())
        assert await heard_until_ack(client) == ["Heartbeat", "Welcome"], "the session that it has"
        await client.say(Bye())
        await client.say(hello())
        assert await heard_until_ack(client) == ["Welcome", "AlertNotice"]
        other = side.connect()
        await other.say(hello(session=b"o" * 16))
        assert await heard_until_ack(other) == ["Welcome", "AlertNotice"]


async def test_who_says_nothing_but_hello_is_cut_off(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        for number in range(MAX_HELLOS + MAX_FAULTS - 1):
            assert isinstance(await client.ask(hello()), Welcome), number
            assert side.receive.runs() == {"r"}
        await client.ask(hello())
        assert side.receive.runs() == set()
        side.receive.heartbeat()
        for _ in range(MAX_HELLOS + MAX_FAULTS - 1):
            await client.ask(hello())
        assert side.receive.runs() == {"r"}, "faults are counted by the heartbeat"
