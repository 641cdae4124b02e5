import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import zmq
import zmq.asyncio

from rankd.config import ServeConfig
from rankd.door import Door
from rankd.sockets import Sockets
from rankd.stages.publish import Publish
from rankd.streams import Streams
from rankd_client.endpoints import endpoints_of
from rankd_client.wire import Event, decode_event

STREAM_ID = "0123456789abcdef"


def event(seq: int, kind: str = "alert", run: str = "r", text: str = "") -> Event:
    return Event(kind, run, STREAM_ID, seq, {"n": seq, "text": text})


@contextlib.asynccontextmanager
async def publishing(directory: Path) -> AsyncIterator[tuple[Publish, zmq.asyncio.Socket]]:
    """A publisher on a real XPUB, and a subscriber to everything that has arrived there."""
    endpoints = endpoints_of(f"ipc://{directory}")
    sockets = Sockets(ServeConfig(endpoints.push, endpoints.alerts, endpoints.query))
    publish = Publish(sockets.alerts, Streams(STREAM_ID), lambda: 12.5, Counter(), Door())
    subscriber = sockets.context.socket(zmq.SUB)
    subscriber.connect(endpoints.alerts)
    subscriber.subscribe(b"")
    watching = asyncio.create_task(publish.watch_subscriptions())
    async with asyncio.timeout(30):
        while not publish.counters["num_subscribed"]:  # noqa: ASYNC110
            await asyncio.sleep(0)
    try:
        yield publish, subscriber
        assert not watching.done()
    finally:
        watching.cancel()
        sockets.close(linger_ms=0)


async def receive(subscriber: zmq.asyncio.Socket) -> Event:
    return decode_event(await asyncio.wait_for(subscriber.recv_multipart(), 30))


async def test_heartbeats_name_what_changed_and_what_was_dropped(socket_dir: Path) -> None:
    async with publishing(socket_dir) as (publish, subscriber):
        sent = [event(1), event(2), event(1, "measurement"), event(1, run="other")]
        publish(sent)
        publish.counters.update(dropped_for_room=3, num_alerts=9)
        publish.heartbeat()
        publish.heartbeat(state="stopping")
        assert [await receive(subscriber) for _ in sent] == sent
        first, second = await receive(subscriber), await receive(subscriber)
        assert (first.kind, first.run, first.stream_id, first.seq) == ("heartbeat", "", STREAM_ID, 1)
        assert first.body == {
            "numbers": [["alert", "r", 2], ["measurement", "r", 1], ["alert", "other", 1]],
            "dropped": {"dropped_for_room": 3},
            "time": 12.5,
            "state": "serving",
        }
        assert (second.seq, second.body["numbers"], second.body["state"]) == (2, [], "stopping")


async def test_runs_whose_name_begins_alike_have_topics_of_their_own(socket_dir: Path) -> None:
    async with publishing(socket_dir) as (publish, subscriber):
        subscriber.unsubscribe(b"")
        subscriber.subscribe(b"alert\0r\0")
        async with asyncio.timeout(30):
            while publish.counters["num_subscribed"] < 2:  # noqa: ASYNC110
                await asyncio.sleep(0)
        publish([event(1, run="r2"), event(1, "measurement"), event(7)])
        assert await receive(subscriber) == event(7)


async def test_a_stuck_subscriber_is_not_waited_for(socket_dir: Path) -> None:
    async with publishing(socket_dir) as (publish, subscriber):
        for seq in range(1, 30_001):  # far beyond what both queues hold
            publish([event(seq, text="x" * 1000)])
        publish.heartbeat()
        seen = [await receive(subscriber)]
        assert seen == [event(1, text="x" * 1000)]


async def test_subscribers_may_send_what_they_like(socket_dir: Path) -> None:
    async with publishing(socket_dir) as (publish, subscriber):
        hostile = publish.socket.context.socket(zmq.XSUB)
        hostile.connect(publish.socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode())
        for frames in ([b"\1heartbeat\0"], [b"\0never subscribed"], [b""], [b"\7" * 400, b"", b"more"], [b"\1\xff"]):
            await hostile.send_multipart(frames)
        await hostile.send(b"\1last")
        async with asyncio.timeout(30):
            while publish.counters["num_subscribed"] < 4:  # noqa: ASYNC110
                await asyncio.sleep(0)
        publish([event(1)])
        assert await receive(subscriber) == event(1)
