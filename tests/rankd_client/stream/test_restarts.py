"""A daemon that restarts, falls silent, or does not answer."""

from __future__ import annotations

import pytest
from simulated_daemon import OTHER, STREAM, Daemon, joined, seqs, settle, tracker

from rankd_client.stream import Gap, Outcome, StreamTracker
from rankd_client.stream.presence import SILENT_TICKS
from rankd_client.stream.questions import MAX_TRIES, PATIENCE_TICKS
from rankd_client.wire import Query, Reply


def test_daemon_without_its_history_is_read_from_one() -> None:
    subscriber = joined(old := Daemon())
    subscriber.on_event(old.publish())
    new = Daemon(OTHER)
    new.publish()
    outcome = subscriber.on_event(new.publish())
    assert outcome.items == () and [query.verb for query in outcome.queries] == ["state"]
    assert seqs(settle(new, subscriber, outcome)) == [1, 2]
    assert subscriber.stream_id == OTHER


def test_runs_silent_since_the_restart_are_found_by_the_state() -> None:
    subscriber = joined(Daemon())
    new = Daemon(OTHER)
    new.publish()
    new.heartbeat()
    assert seqs(settle(new, subscriber, subscriber.on_event(new.heartbeat()))) == [1]


def test_an_alert_that_a_new_stream_raises_is_told_although_the_old_one_had_its_like() -> None:
    """Ids are the same for the same history: a job that is run again, and fails alike, is a new alarm."""
    subscriber = joined(old := Daemon())
    assert subscriber.on_event(old.publish(alert_id="same")).items
    new = Daemon(OTHER)
    told = settle(new, subscriber, subscriber.on_event(new.publish(alert_id="same")))
    assert [(item.alert_id, item.stream_id) for item in told] == [("same", OTHER)]
    outcome = subscriber.on_event(new.publish(alert_id="same", state="resolved"))
    assert [item.state for item in outcome.items] == ["resolved"]


def test_alert_of_an_earlier_stream_that_still_fires_is_shown_to_a_late_joiner() -> None:
    """A daemon with its detectors' state but new numbers: the number is not one of this stream."""
    subscriber = tracker()
    (query,) = subscriber.start().queries
    alert = {"alert_id": "x", "state": "firing", "run": "r", "layer": "a", "stream_id": OTHER, "seq": 77}
    outcome = subscriber.on_reply(Reply(query.query_id, STREAM, {"numbers": [], "alerts": [alert]}))
    assert seqs(outcome.items) == [77] and outcome.queries == ()
    assert seqs(subscriber.on_event(Daemon().publish()).items) == [1]


def test_daemon_with_its_history_goes_on() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    subscriber.on_event(daemon.publish())
    daemon.heartbeats = 0  # counted anew, while the numbers go on
    daemon.publish()
    daemon.changed.clear()
    assert seqs(settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat()))) == [2]


def test_reply_of_another_stream_is_not_believed() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish()
    (query,) = subscriber.on_event(daemon.publish()).queries
    assert subscriber.on_reply(Daemon(OTHER).answer(query)) == Outcome()
    assert seqs(subscriber.on_reply(daemon.answer(query)).items) == [1, 2]


def test_silence_asks_again_and_for_the_state_afterwards() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish()
    (query,) = subscriber.on_event(daemon.publish()).queries
    subscriber.on_tick()
    for _ in range(10 * MAX_TRIES):  # nobody is there: that is no refusal
        assert [subscriber.on_tick().queries for _ in range(SILENT_TICKS)] == [(), (), (query,)]
    assert subscriber.absent
    outcome = subscriber.on_event(daemon.heartbeat())
    assert [q.verb for q in outcome.queries] == ["state"] and not subscriber.gaps and not subscriber.absent
    assert seqs(settle(daemon, subscriber, Outcome(queries=(query, *outcome.queries)))) == [1, 2]


def unanswered(daemon: Daemon, subscriber: StreamTracker) -> tuple[list[Outcome], list[Query]]:
    outcomes = []
    for _ in range(MAX_TRIES * PATIENCE_TICKS):
        subscriber.on_event(daemon.heartbeat())
        outcomes.append(subscriber.on_tick())
    return outcomes, [query for outcome in outcomes for query in outcome.queries]


def test_resume_is_asked_three_times_then_given_up() -> None:
    daemon = Daemon()
    subscriber = joined(daemon, "measurement")
    daemon.publish(kind="measurement")
    (query,) = subscriber.on_event(daemon.publish(kind="measurement")).queries
    outcomes, queries = unanswered(daemon, subscriber)
    assert queries == [query] * (MAX_TRIES - 1)
    assert outcomes[-1].gaps == (Gap(STREAM, "measurement", "r", 1, 1),) and seqs(outcomes[-1].items) == [2]
    assert subscriber.num_unanswered == 1
    assert subscriber.on_reply(daemon.answer(query)) == Outcome()


def test_refusals_count_as_no_answer() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish()
    (query,) = subscriber.on_event(daemon.publish()).queries
    assert subscriber.on_reply(Reply(query.query_id, STREAM, error="unknown_query")) == Outcome()
    for expected in ((), (query,)):
        subscriber.on_event(daemon.heartbeat())
        assert subscriber.on_tick().queries == expected


def test_many_heartbeats_at_once_are_no_time() -> None:
    """A reader that was busy for a minute finds a minute of heartbeats ahead of the answers."""
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish()
    (query,) = subscriber.on_event(daemon.publish()).queries
    for _ in range(60):
        assert subscriber.on_event(daemon.heartbeat()) == Outcome()
    assert seqs(subscriber.on_reply(daemon.answer(query)).items) == [1, 2]


def test_without_any_state_live_events_are_followed_all_the_same() -> None:
    daemon, subscriber = Daemon(), tracker()
    daemon.publish()
    subscriber.start()
    assert subscriber.on_event(daemon.publish()).items == ()
    outcomes, _ = unanswered(daemon, subscriber)
    assert [item.seq for outcome in outcomes for item in outcome.items] == [2]
    assert not subscriber.truncated
    assert seqs(subscriber.on_event(daemon.publish()).items) == [3]


@pytest.mark.parametrize("query_id", [0, 99, 1 << 62])
def test_reply_to_no_question_changes_nothing(query_id: int) -> None:
    subscriber = joined(Daemon())
    assert subscriber.on_reply(Reply(query_id, STREAM, {"numbers": [["alert", "r", 9]]})) == Outcome()
