"""Greetings, credit and answers."""

import asyncio
from pathlib import Path

from receiving import CREDIT, STREAM_ID, Side, chunk, hello, serving

from rankd.config import Limits
from rankd_client.wire import MIN_CHUNK_BYTES, Ack, AlertNotice, Bye, Heartbeat, Refusal, Welcome, WireError


async def test_greets_takes_and_gives_credit(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        assert await client.ask(hello()) == Welcome(STREAM_ID, CREDIT, CREDIT, 1.0)
        assert side.receive.runs() == {"r"}
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
        assert side.counters["num_received_bytes"] == 8 and side.receive.runs() == set()


async def test_too_many_connections(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        first, second = side.connect(), side.connect()
        await first.ask(hello())
        answer = await second.ask(hello(session=b"t" * 16))
        assert isinstance(answer, Refusal) and answer.code == "too_many_connections"
        await first.say(Bye())
        while side.receive.runs():  # noqa: ASYNC110
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
        side.receive.refuse_chunk(peer, item, WireError("chunk_order", "told"))
        assert peer.credit_bytes == CREDIT
        assert isinstance(await client.hear(), Welcome)
        assert await client.hear() == Refusal("chunk_order", "told", "w", 1, "weight", 8)
    finally:
        side.clients.destroy(linger=0)
        side.router.close()


async def test_heartbeats_keep_a_peer(socket_dir: Path) -> None:
    async with serving(socket_dir, peer_timeout_seconds=30.0) as side:
        client = side.connect()
        await client.ask(hello())
        side.now = 29.0
        await client.say(Heartbeat())
        await client.ask(chunk())  # behind the heartbeat
        side.now = 58.0
        side.receive.heartbeat()
        assert side.receive.runs() == {"r"}
