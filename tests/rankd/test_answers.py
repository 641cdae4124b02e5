from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rankd.answers import MAX_RESUME_EVENTS, Answers
from rankd.archive import Archive
from rankd.auth import OWNER, Grant
from rankd.config import HistoryConfig, Limits
from rankd.current import Current
from rankd.reading import Reading
from rankd.records import Alert, Measurement
from rankd.store.entries import Entry
from rankd.store.writer import Writer
from rankd.streams import Streams
from rankd_client.wire import WireError

STREAM_ID = "0123456789abcdef"


def measurement(step: int, run: str = "r") -> Measurement:
    return Measurement(run, "w", step, (2, 3), True, False, {"stable_rank": 1.5}, time=12.5)


def alert(step: int) -> Alert:
    return Alert(f"a{step}", "r", "w", step, "warning", "firing", "rule", None, None, None, "m", "a", time=12.5)


def answers(num_measurements: int, **limits: Any) -> Answers:
    streams = Streams(STREAM_ID)
    current = Current(streams, Limits(**limits), Counter())
    for step in range(1, num_measurements + 1):
        current.measured(measurement(step), streams.next_n(("measurement", "r")))
    return Answers(current, Counter(num_secret=1))


@pytest.mark.parametrize(
    ("from_seq", "numbers", "first"),
    [(0, range(4, 8), 4), (4, range(4, 8), 4), (6, range(6, 8), 4), (8, [], 4), (99, [], 4)],
)
async def test_from_memory(from_seq: int, numbers: list[int], first: int) -> None:
    events, oldest, newest = await answers(7, max_recent_measurements=4).since("measurement", "r", from_seq, None)
    assert ([event.seq for event in events], oldest, newest) == (list(numbers), first, 7)
    assert [event.body["step"] for event in events] == list(numbers)


async def test_so_many_at_a_time() -> None:
    events, _, newest = await answers(MAX_RESUME_EVENTS + 1).since("measurement", "r", 1, None)
    assert (len(events), events[-1].seq, newest) == (MAX_RESUME_EVENTS, MAX_RESUME_EVENTS, MAX_RESUME_EVENTS + 1)


async def test_of_what_nobody_has() -> None:
    asked = answers(1)
    assert await asked.since("alert", "unknown", 1, None) == ([], 1, 0)
    assert await asked.since("measurement", "r", 1, "f" * 16) == ([], 1, 0), "a stream that was never"
    assert await asked.since("measurement", "r", (1 << 63) - 1, None) == ([], 1, 1)


async def test_counters_are_for_admins() -> None:
    asked = answers(1)
    assert (await asked.state(None, OWNER))["counters"] == {"num_secret": 1}
    assert (await asked.state(None, OWNER))["plan"] == {}
    assert not {"counters", "plan"} & (await asked.state(None, Grant("k", namespace="ns"))).keys()


async def test_capacity_is_told_of_what_a_grant_covers() -> None:
    asked = answers(1)
    asked.capacity = lambda covers: {run: 1 for run in ("r", "@ns/r") if covers(run)}
    assert (await asked.state(None, OWNER))["capacity"] == {"r": 1, "@ns/r": 1}
    assert (await asked.state(None, Grant("k", namespace="ns")))["capacity"] == {"@ns/r": 1}


async def test_the_end_of_a_stream_is_known_before_the_history_is(tmp_path: Path) -> None:
    """The history cannot be written, but read: its stream has ended, and only the daemon knows where."""
    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    for n in range(1, 6):
        writer.submit(Entry(n, measurement(n)))
    assert writer.flush(30)
    streams = Streams("e" * 16)
    streams.load(("measurement", "r"), newest=6, base=4)  # the fifth was written late, and told in the new stream
    reading = Reading(Archive(tmp_path), Counter(), print)
    asked = Answers(Current(streams, Limits(), Counter()), Counter(), reading)
    events, first, last = await asked.since("measurement", "r", 2, writer.stream_id)
    assert ([event.seq for event in events], first, last) == ([2, 3, 4], 1, 4)
    assert await asked.since("measurement", "r", 5, writer.stream_id) == ([], 1, 4)
    reading.close()
    writer.close(30)


async def test_a_state_says_which_streams_there_were_and_whose_runs_it_covers(tmp_path: Path) -> None:
    asked = answers(1)
    assert (await asked.state(None, OWNER))["streams"] == [asked.stream_id]
    assert (await asked.state(None, OWNER))["namespace"] is None
    assert (await asked.state(None, Grant("k", namespace="ns")))["namespace"] == "ns"
    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    former = writer.stream_id
    writer.start()
    writer.switch_stream("e" * 16, {})
    writer.submit(Entry(1, measurement(1)))
    assert writer.flush(30)
    writer.close(30)
    asked.reading = Reading(Archive(tmp_path), Counter(), print)
    assert (await asked.state(None, OWNER))["streams"] == [former, "e" * 16, asked.stream_id]
    asked.reading.close()


async def test_older_events_and_former_streams_come_from_the_history(tmp_path: Path) -> None:
    """Ten measurements with an alert each; after the sixth the history was away, so that a new stream began."""
    entries = [Entry(n, measurement(n), ((n, alert(n)),)) for n in range(1, 11)]
    first = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    former = first.stream_id
    first.start()
    for entry in entries[:6]:
        first.submit(entry)
    assert first.flush(30)
    first.switch_stream(STREAM_ID, {("measurement", "r"): 6, ("alert", "r"): 6})
    for entry in entries[6:]:
        first.submit(entry)
    assert first.flush(30)
    first.close(10)

    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    assert writer.stream_id == STREAM_ID
    streams = Streams(writer.stream_id)
    current = Current(streams, Limits(), Counter())
    reading = Reading(Archive(tmp_path), Counter(), print)
    await reading.ask(lambda archive: archive.load(streams, current))
    asked = Answers(current, Counter(), reading)
    try:
        assert [(row["seq"], row["stream_id"]) for row in current.firing("r")] == [
            *((n, former) for n in range(1, 7)),
            *((n - 6, STREAM_ID) for n in range(7, 11)),
        ]
        for kind in ("measurement", "alert"):
            events, oldest, newest = await asked.since(kind, "r", 2, None)
            assert ([(event.seq, event.body["step"]) for event in events], oldest, newest) == (
                [(2, 8), (3, 9), (4, 10)],
                1,
                4,
            )
            events, oldest, newest = await asked.since(kind, "r", 4, former)
            assert ([(event.seq, event.body["step"]) for event in events], oldest, newest) == (
                [(4, 4), (5, 5), (6, 6)],
                1,
                6,
            )
            assert {event.stream_id for event in events} == {former}
            for stream_id in (None, former):
                assert (await asked.since(kind, "r", (1 << 63) - 1, stream_id))[0] == []
        assert events[0].body["seq"] == 4 and events[0].body["stream_id"] == former
        assert await asked.since("alert", "r", 7, former) == ([], 1, 6)
        current.raised(alert(11), streams.next_n(("alert", "r")))
        assert [event.seq for event in (await asked.since("alert", "r", 3, None))[0]] == [3, 4]
        assert [event.seq for event in (await asked.since("alert", "r", 5, None))[0]] == [5]
        assert await reading.ask(lambda archive: archive.last_steps("r")) == {("w", "weight"): 10}
    finally:
        reading.close()
        writer.close(10)


async def test_what_only_an_unreadable_history_could_tell_is_refused_for_now(tmp_path: Path) -> None:
    """Who were told that there is nothing would take it for lost."""
    told: list[str] = []
    asked = answers(7, max_recent_measurements=4)
    asked.reading = Reading(Archive(tmp_path), Counter(), told.append)
    for query in (("measurement", "r", 3, None), ("measurement", "r", 1, "f" * 16)):
        with pytest.raises(WireError, match="unavailable: the history cannot be read: no history in"):
            await asked.since(*query)
    events, oldest, newest = await asked.since("measurement", "r", 5, None)
    assert ([event.seq for event in events], oldest, newest) == ([5, 6, 7], 4, 7), "memory has them"
    state = await asked.state(None, OWNER)
    assert state["numbers"] == [["measurement", "r", 7]]
    assert "streams" not in state, "left out, rather than said to be all"
    assert len(told) == 4 and str(tmp_path) in told[0]
    asked.reading.close()


def test_a_history_that_was_replaced_is_read_anew(tmp_path: Path) -> None:
    """As when it was damaged, or somebody removed it: the old file can still be read, and says nothing new."""
    archive = Archive(tmp_path)
    for last in (3, 5):
        writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
        writer.start()
        writer.submit(Entry(last, measurement(last)))
        assert writer.flush(30)
        writer.close(10)
        assert archive.last_steps("r") == {("w", "weight"): last}
        assert archive.streams() == [writer.stream_id]
        for file in tmp_path.glob("history.db*"):
            file.rename(file.with_name(f"aside-{last}-{file.name}"))
    archive.close()
