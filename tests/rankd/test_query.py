import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zmq
import zmq.asyncio
from router import Router

from rankd import query as query_module
from rankd.answers import Answers
from rankd.auth import Grant
from rankd.config import Limits
from rankd.current import Current
from rankd.door import Door, Source
from rankd.query import QueryServer
from rankd.records import Alert, Measurement
from rankd.stages.record import Record
from rankd.streams import Streams
from rankd_client.endpoints import endpoints_of
from rankd_client.wire import Query, Reply, decode_reply, encode_query, query_id_of

STREAM_ID = "0123456789abcdef"


class Asker:
    def __init__(self, socket: zmq.asyncio.Socket, counters: Counter[str]) -> None:
        self.socket = socket
        self.counters = counters

    async def ask(self, frames: list[bytes]) -> Reply:
        await self.socket.send_multipart(frames)
        return decode_reply(await asyncio.wait_for(self.socket.recv_multipart(), 30))


class HeldAnswers(Answers):
    """Those of a daemon that is busy with the first until `released`."""

    def __init__(self, current: Current, counters: Counter[str]) -> None:
        super().__init__(current, counters)
        self.released = asyncio.Event()

    async def state(self, *arguments: Any) -> Any:
        await self.released.wait()
        return await super().state(*arguments)

    async def since(self, *arguments: Any) -> Any:
        await self.released.wait()
        return await super().since(*arguments)


class ByNumber(Door):
    """The holder of one key asks queries with numbers below 1,000, that of another the rest; `on_other` is called when
    one of those has come."""

    def __init__(self, on_other: Callable[[], None]) -> None:
        super().__init__()
        self.on_other = on_other

    def enter(self, frames: Sequence[zmq.Frame]) -> Source:
        name = "flood" if query_id_of([frames[0].bytes]) < 1000 else "honest"
        if name == "honest":
            self.on_other()
        return Source(Grant(name, public_key=name, rights=frozenset({"admin"})))


@contextlib.asynccontextmanager
async def answering(directory: Path, first: Sequence[list[bytes]] = ()) -> AsyncIterator[Asker]:
    """A query server on a real ROUTER, over a record of three measurements and an alert. `first` is asked before it
    begins, and all there before any of it is answered; the last of it is the other user's."""
    endpoints = endpoints_of(f"ipc://{directory}")
    router = Router(endpoints.query, send_hwm=1000 if first else 8)
    counters: Counter[str] = Counter()
    current = Current(Streams(STREAM_ID), Limits(), counters)
    record = Record(current.streams, current, counters)
    fired = Alert("id", "r", "w", 3, "critical", "firing", "nonfinite", None, None, None, "m", "a")
    for step in (1, 2, 3):
        record(Measurement("r", "w", step, (2, 2), True, False, {}), [fired] if step == 3 else [])
    answers = HeldAnswers(current, counters)
    if not first:
        answers.released.set()
    asker = Asker(router.context.socket(zmq.DEALER), counters)
    asker.socket.connect(endpoints.query)
    for frames in first:
        await asker.socket.send_multipart(frames)
    door = ByNumber(answers.released.set)
    serving = asyncio.create_task(QueryServer(router.socket, answers, counters, door).serve())
    try:
        yield asker
        assert not serving.done(), "a malformed query must not end the loop"
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        router.close()


async def test_state(socket_dir: Path) -> None:
    async with answering(socket_dir) as asker:
        reply = await asker.ask(encode_query(Query("state", 7)))
        assert (reply.query_id, reply.stream_id, reply.error, reply.events) == (7, STREAM_ID, "", ())
        assert sorted(reply.body["numbers"]) == [["alert", "r", 1], ["measurement", "r", 3]]
        assert [alert["alert_id"] for alert in reply.body["alerts"]] == ["id"]
        assert reply.body["runs"] == [{"run": "r", "step": 3, "num_measurements": 3, "layers": 1}]
        assert (await asker.ask(encode_query(Query("state", 8, run="other")))).body["runs"] == []


async def test_resume(socket_dir: Path) -> None:
    async with answering(socket_dir) as asker:
        reply = await asker.ask(encode_query(Query("resume", 1, "measurement", "r", 2)))
        assert reply.body == {"first": 1, "last": 3}
        assert [(event.kind, event.seq, event.body["step"]) for event in reply.events] == [
            ("measurement", 2, 2),
            ("measurement", 3, 3),
        ]
        reply = await asker.ask(encode_query(Query("resume", 2, "alert", "nobody", 1)))
        assert (reply.body, reply.events) == ({"first": 1, "last": 0}, ())


def query(**fields: Any) -> list[bytes]:
    return [msgpack.packb({"t": "resume", "id": 1, "run": "r", **fields})]


MALFORMED = [
    ([b"", *query()], "frame_count", 0),
    ([b"\xc1"], "bad_header", 0),
    ([b""], "bad_header", 0),
    ([b"\x90"], "bad_header", 0),
    ([bytes(65_536)], "bad_header", 0),
    (query(t="drop"), "unknown_query", 1),
    (query(run=None), "missing_field", 1),
    (query(run=""), "bad_name", 1),
    (query(run="@x"), "bad_name", 1),
    (query(kind="heartbeat"), "bad_field", 1),
    (query(from_seq=-1), "bad_field", 1),
    (query(from_seq=1 << 63), "bad_field", 1),
    (query(id="1"), "bad_field", 0),
]


@pytest.mark.parametrize(("frames", "code", "query_id"), MALFORMED, ids=[code for _, code, _ in MALFORMED])
async def test_a_malformed_query_is_answered_with_its_code(
    socket_dir: Path, frames: list[bytes], code: str, query_id: int
) -> None:
    async with answering(socket_dir) as asker:
        assert await asker.ask(frames) == Reply(query_id, STREAM_ID, error=code)
        assert asker.counters[f"num_refused_{code}"] == 1
        assert (await asker.ask(encode_query(Query("state", 9)))).query_id == 9


async def test_one_who_does_not_read_the_replies_loses_them(socket_dir: Path) -> None:
    async with answering(socket_dir) as asker:
        asker.socket.setsockopt(zmq.RCVHWM, 1)
        greedy = encode_query(Query("resume", 1, "measurement", "r", 0))
        async with asyncio.timeout(60):
            while not asker.counters["dropped_replies"]:
                await asker.socket.send_multipart(greedy)


async def test_each_user_is_answered_in_turn_however_much_another_asks(socket_dir: Path) -> None:
    flood = [encode_query(Query("resume", number, "measurement", "r", 1)) for number in range(1, 41)]
    async with answering(socket_dir, [*flood, encode_query(Query("state", 1000))]) as asker:
        async with asyncio.timeout(30):
            answered = [decode_reply(await asker.socket.recv_multipart()).query_id for _ in range(41)]
    assert answered.index(1000) < 3 and sorted(answered) == [*range(1, 41), 1000]


async def test_what_is_more_than_there_is_room_for_is_told_so(
    socket_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "MAX_WAITING", 10)
    flood = [encode_query(Query("state", number)) for number in range(1, 41)]
    async with answering(socket_dir, [*flood, encode_query(Query("state", 1000))]) as asker:
        async with asyncio.timeout(30):
            replies = [decode_reply(await asker.socket.recv_multipart()) for _ in range(41)]
        busy = [reply.query_id for reply in replies if reply.error]
        assert {reply.error for reply in replies} == {"", "busy"} and 1000 not in busy
        assert asker.counters["num_refused_busy"] == len(busy) > 0
