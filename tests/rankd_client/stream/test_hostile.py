"""What a hostile or broken daemon may claim."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated_daemon import OTHER, STREAM, Daemon, joined, seqs, settle, tracker

from rankd_client.stream import Outcome
from rankd_client.wire import Event, Reply, encode_query


@pytest.mark.parametrize(
    "numbers",
    [
        7,
        [7],
        [["alert", "r"]],
        [["alert", "r", "1"]],
        [["alert", "r", True]],
        [["alert", "r", -1]],
        [["alert", "r", 1 << 63]],
        [["heartbeat", "r", 1]],
        [[["alert"], "r", 1]],
        [["alert", "", 1]],
        [["alert", "a\0b", 1]],
        [["alert", "r" * 300, 1]],
        [["alert", "\udc80", 1]],
    ],
)
def test_senseless_numbers_are_counted(numbers: Any) -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    event = Event("heartbeat", "", STREAM, daemon.heartbeats + 1, {"numbers": numbers})
    assert subscriber.on_event(event) == Outcome()
    assert subscriber.num_malformed == 1


@pytest.mark.parametrize(
    "alerts", [7, [7], [{}], [{"run": "r", "seq": 1}], [{"run": 1, "stream_id": STREAM, "seq": 1}]]
)
def test_senseless_alerts_of_a_state_are_counted(alerts: Any) -> None:
    subscriber = tracker()
    (query,) = subscriber.start().queries
    assert subscriber.on_reply(Reply(query.query_id, STREAM, {"alerts": alerts})) == Outcome()
    assert subscriber.num_malformed == 1


def test_numbers_that_the_daemon_itself_does_not_know_end_without_a_gap() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    for body in ({"numbers": [["alert", "r", (1 << 63) - 1]]}, {}):
        daemon.heartbeats += 1
        settle(daemon, subscriber, subscriber.on_event(Event("heartbeat", "", STREAM, daemon.heartbeats, body)))
    settle(daemon, subscriber, subscriber.on_event(Event("alert", "r", STREAM, 1 << 60, {})))
    assert not subscriber.gaps
    assert seqs(subscriber.on_event(daemon.publish()).items) == [1]


def test_huge_gap_takes_no_time() -> None:
    subscriber = joined(Daemon())
    (query,) = subscriber.on_event(Event("alert", "r", STREAM, 1 << 62, {})).queries
    late = Event("alert", "r", STREAM, (1 << 62) - 1, {})
    outcome = subscriber.on_reply(Reply(query.query_id, STREAM, {"first": 1 << 61, "last": 1 << 62}, (late,)))
    assert [(gap.first_seq, gap.last_seq) for gap in outcome.gaps] == [(1, (1 << 62) - 2)]
    assert len(outcome.items) == 2


def test_events_that_were_not_asked_for_are_ignored_in_a_reply() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish()
    (query,) = subscriber.on_event(daemon.publish()).queries
    foreign = (
        Event("alert", "x", STREAM, 1, {}),
        Event("alert", "r", OTHER, 1, {}),
        Event("alert", "r", STREAM, 0, {}),
    )
    good = daemon.answer(query)
    outcome = subscriber.on_reply(Reply(query.query_id, STREAM, good.body, good.events + foreign))
    assert seqs(outcome.items) == [1, 2] and subscriber.num_malformed == 2


def test_number_zero_and_alerts_without_an_id() -> None:
    subscriber = joined(Daemon())
    assert subscriber.on_event(Event("alert", "r", STREAM, 0, {})) == Outcome()
    assert subscriber.num_malformed == 1
    assert subscriber.on_event(Event("alert", "r", STREAM, 1, {"alert_id": ["x"], "state": {}})).items


def test_dropped_counters_are_the_last_heartbeats() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    assert subscriber.dropped == {"dropped_events": 3}
    subscriber.on_event(Event("heartbeat", "", STREAM, daemon.heartbeats + 1, {"dropped": 7}))
    assert subscriber.dropped == {"dropped_events": 3}


BODY_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.text(max_size=3) | st.sampled_from([STREAM, "r"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
NUMBERED = st.integers(0, 2**64 - 1) | st.integers(0, 4)
BODIES = st.dictionaries(
    st.sampled_from(["numbers", "alerts", "truncated", "dropped", "first", "last", "run", "seq", "alert_id", "state"]),
    BODY_VALUES | st.lists(st.tuples(st.sampled_from(["alert", "x"]), st.just("r"), NUMBERED).map(list), max_size=3),
    max_size=4,
)
EVENTS = st.builds(
    Event,
    st.sampled_from(["alert", "heartbeat"]),
    st.sampled_from("rs"),
    st.sampled_from([STREAM, OTHER]),
    NUMBERED,
    BODIES,
)
REPLIES = st.builds(
    Reply,
    st.integers(0, 6),
    st.sampled_from([STREAM, OTHER, ""]),
    BODIES,
    st.lists(EVENTS, max_size=3).map(tuple),
    st.sampled_from(["", "", "bad_field"]),
)


@settings(deadline=None, max_examples=200)
@given(st.lists(EVENTS | REPLIES | st.none(), max_size=15))
def test_anything_a_daemon_says_gives_an_outcome_with_queries_that_can_be_sent(
    said: list[Event | Reply | None],
) -> None:
    subscriber = tracker("alert", "measurement")
    outcomes = [subscriber.start()]
    for message in said:
        if message is None:
            outcomes.append(subscriber.on_tick())
        elif isinstance(message, Event):
            outcomes.append(subscriber.on_event(message))
        else:
            outcomes.append(subscriber.on_reply(message))
    for outcome in outcomes:
        assert all(encode_query(query) for query in outcome.queries)
        assert all(item.stream in ("alert", "measurement") for item in outcome.items)
        assert all(gap.first_seq <= gap.last_seq for gap in outcome.gaps)
