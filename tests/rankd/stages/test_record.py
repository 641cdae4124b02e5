import asyncio
import contextlib
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from rankd.config import HistoryConfig, Limits
from rankd.current import Current
from rankd.records import Alert, Measurement
from rankd.stages.record import Outcome, Record
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.writer import Writer
from rankd.streams import Streams
from rankd_client.wire import Event


def measurement(step: int = 1, run: str = "r", layer: str = "w") -> Measurement:
    return Measurement(run, layer, step, (2, 3), True, False, {"stable_rank": 1.5}, time=12.5)


def alert(step: int, run: str = "r") -> Alert:
    return Alert(f"{run}{step}", run, "w", step, "warning", "firing", "rule", None, None, None, "m", "a", time=12.5)


def shown(events: list[Event]) -> list[tuple[str, int]]:
    return [(event.kind, event.seq) for event in events]


class Side:
    """A record stage, over a real writer where there is a directory."""

    def __init__(self, data: Path | None = None, **history: Any) -> None:
        loop = asyncio.get_running_loop()
        self.faults: list[str | None] = []
        self.writer: Writer | None = None
        if data is not None:
            self.writer = Writer(
                data,
                HistoryConfig(**history),
                on_committed=lambda entries: loop.call_soon_threadsafe(self.record.committed, entries),
                on_fault=lambda error: loop.call_soon_threadsafe(self.record.fault, error),
            )
        self.streams = Streams("0" * 16 if self.writer is None else self.writer.stream_id)
        self.current = Current(self.streams, Limits(), Counter())
        self.record = Record(self.streams, self.current, Counter(), self.writer, 5.0, self.faults.append)
        if self.writer is not None:
            self.writer.start()

    async def next(self) -> Outcome:
        return await asyncio.wait_for(self.record.next(), 60)

    async def taken(self) -> None:
        """Until the writer has all that waits in hand."""
        assert self.writer is not None
        while self.writer._waiting or not self.writer._batch:  # noqa: ASYNC110 - it is another thread, and tells nobody
            await asyncio.sleep(0.01)

    async def all(self, num_settled: int) -> Outcome:
        """Everything, until so many are settled."""
        whole = Outcome()
        while len(whole.settled) < num_settled:
            outcome = await self.next()
            whole.events += outcome.events
            whole.settled += outcome.settled
        return whole


@contextlib.asynccontextmanager
async def recording(data: Path | None = None, **history: Any) -> AsyncIterator[Side]:
    side = Side(data, **history)
    yield side
    if side.writer is not None:
        await asyncio.to_thread(side.writer.close, 30)


async def test_without_a_history_there_is_nothing_to_wait_for() -> None:
    async with recording() as side:
        side.record(measurement(1), [alert(1)])
        outcome = side.record.take_outcome()
        assert shown(outcome.events) == [("measurement", 1), ("alert", 1)]
        assert outcome.settled == [(("r", "w", "weight", 1), "recorded")]
        assert side.record.take_outcome() == Outcome()


async def test_with_one_an_event_is_told_when_it_is_on_disk(tmp_path: Path) -> None:
    async with recording(tmp_path) as side:
        for step in range(1, 4):
            side.record(measurement(step), [alert(step)], b"state" if step == 2 else None)
        side.record.alert(alert(7))
        assert side.record.take_outcome() == Outcome(), "nothing before the commit"
        assert side.current.state(None, lambda run: True)["numbers"] == [], "nor to who asks: it would miss it then"
        outcome = await side.all(num_settled=3)
        if len(outcome.events) < 7:
            outcome.events += (await side.next()).events
        assert shown(outcome.events) == [
            *[("measurement", 1), ("alert", 1), ("measurement", 2), ("alert", 2), ("measurement", 3), ("alert", 3)],
            ("alert", 4),
        ]
        with Reader(tmp_path) as reader:
            assert [n for n, _ in reader.measurements("r")] == [1, 2, 3]
            assert [n for n, _ in reader.alerts("r")] == [1, 2, 3, 4]
            state, since = reader.judge("r", "w", "weight")
            assert (state, [row.step for row in since]) == (b"state", [3])


async def test_a_locked_history_detaches_the_stream_and_comes_back_by_itself(tmp_path: Path) -> None:
    async with recording(tmp_path) as side:
        side.record(measurement(1), [alert(1)])
        await side.all(num_settled=1)
        before = side.streams.stream_id
        locker = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        side.record(measurement(2), [alert(2)])
        detached = await side.next()  # nobody unlocks until this has come
        assert side.streams.stream_id != before and side.faults and "locked" in str(side.faults[0])
        assert shown(detached.events) == [("measurement", 1), ("alert", 1)], "a stream of its own"
        assert {event.stream_id for event in detached.events} == {side.streams.stream_id}
        assert detached.settled == [], "it is not on disk"
        side.record(measurement(3), [])
        assert shown((await side.next()).events) == [("measurement", 2)], "and the next ones at once"
        locker.execute("ROLLBACK")
        locker.close()
        outcome = await side.all(num_settled=2)
        assert outcome.events == [] and [word for _, word in outcome.settled] == ["recorded"] * 2
        async with asyncio.timeout(60):
            while not side.record.attached:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert side.faults[-1] is None
        side.record(measurement(4), [])
        assert shown((await side.all(num_settled=1)).events) == [("measurement", 3)]
        with Reader(tmp_path) as reader:
            assert [(n, row.step) for n, row in reader.measurements("r")] == [(1, 1), (2, 2), (3, 3), (4, 4)]
            assert (reader.stream_id, reader.streams()) == (side.streams.stream_id, [side.streams.stream_id, before])
            assert reader.base(side.streams.stream_id, "measurement", "r") == 1
            assert reader.end(before, "alert", "r") == 1


async def test_a_history_that_is_too_slow_is_as_good_as_none(tmp_path: Path) -> None:
    async with recording(tmp_path) as side:
        side.record._patience_seconds = -1.0
        side.record(measurement(1), [alert(1)])
        side.record.watch()
        assert shown(side.record.take_outcome().events) == [("measurement", 1), ("alert", 1)]
        assert not side.record.attached and side.faults == ["a commit takes longer than -1 s"]
        outcome = await side.all(num_settled=1)
        assert outcome.events == [], "told once"


async def test_what_finds_no_room_is_told_and_given_up(tmp_path: Path) -> None:
    async with recording(tmp_path, max_pending=10) as side:
        locker = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        events, words = [], []
        for step in range(1, 31):
            side.record(measurement(step), [alert(step)] if step == 3 else [])
            outcome = side.record.take_outcome()
            events += outcome.events
            words += outcome.settled
        assert [event.seq for event in events if event.kind == "measurement"] == list(range(1, 31))
        assert {word for _, word in words} == {"superseded"} and len(words) == side.record.counters[
            "dropped_rows"
        ] >= 19
        assert ("r", "w", "weight", 3) not in [key for key, _ in words], "what raised an alert is kept longest"
        locker.execute("ROLLBACK")
        locker.close()
        outcome = await side.all(num_settled=30 - len(words))
        assert {word for _, word in outcome.settled} == {"recorded"}
        with Reader(tmp_path) as reader:
            assert [n for n, _ in reader.alerts("r")] == [1]


async def test_all_rows_of_a_snapshot_are_told_and_its_last_one_settles_it(tmp_path: Path) -> None:
    """What is called as a part is may be another snapshot, which is yet to be measured."""
    parts = [measurement(7, layer=f"w{part}") for part in (":q", ":k", "")]
    rows = [(parts[0], [], None), (parts[1], [alert(7)], b"state"), (parts[2], [], None)]
    for data in (None, tmp_path):
        async with recording(data) as side:
            side.record.together(rows)
            side.record(measurement(1, layer="v"), [])
            outcome = await side.all(num_settled=2)
            kinds = [("measurement", 1), ("measurement", 2), ("alert", 1), ("measurement", 3), ("measurement", 4)]
            assert shown(outcome.events) == kinds
            assert outcome.settled == [(("r", "w", "weight", 7), "recorded"), (("r", "v", "weight", 1), "recorded")]
            assert side.record.counters["num_measurements"] == 4
    with Reader(tmp_path) as reader:
        assert [row.layer for _, row in reader.measurements("r")] == ["w:q", "w:k", "w", "v"]
        assert reader.judge("r", "w:k", "weight")[0] == b"state"


async def test_rows_of_a_snapshot_are_given_up_together(tmp_path: Path) -> None:
    """And settled once, as what became of the whole."""
    async with recording(tmp_path, max_pending=10) as side:
        locker = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        outcome = Outcome()
        for step in range(1, 11):
            rows = [measurement(step, layer=layer) for layer in ("w:q", "w:k", "w")]
            side.record.together(
                [(row, [alert(step)] if (step, row.layer) == (5, "w:q") else [], None) for row in rows]
            )
            outcome.settled += side.record.take_outcome().settled
            if step == 1:  # the writer takes it, and is stuck: how much more it might take would be chance
                await asyncio.wait_for(side.taken(), 60)
        given_up = outcome.settled
        assert given_up and {word for _, word in given_up} == {"superseded"}
        assert side.record.counters["dropped_rows"] == 3 * len(given_up)
        locker.execute("ROLLBACK")
        locker.close()
        assert len((await side.all(num_settled=10 - len(given_up))).settled) == 10 - len(given_up)
    with Reader(tmp_path) as reader:
        kept = [(row.step, row.layer) for _, row in reader.measurements("r")]
    steps = sorted(set(range(1, 11)) - {step for (*_, step), _ in given_up})
    assert kept == [(step, layer) for step in steps for layer in ("w:q", "w:k", "w")] and 5 in steps


async def test_an_entry_is_one_thing(tmp_path: Path) -> None:
    """What was committed late, in a stream that had ended by then, is settled and not told again."""
    async with recording(tmp_path) as side:
        side.record(measurement(1), [])
        (entry,) = side.record._unpublished
        assert isinstance(entry, Entry)
        side.record._detach("a test")
        assert shown(side.record.take_outcome().events) == [("measurement", 1)]
        outcome = await side.all(num_settled=1)
        assert outcome == Outcome([], [(("r", "w", "weight", 1), "recorded")])
