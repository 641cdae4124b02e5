"""A late joiner: the state first, then what comes."""

from __future__ import annotations

from simulated_daemon import STREAM, Daemon, joined, seqs, settle, tracker

from rankd_client.stream import Outcome
from rankd_client.wire import Reply


def test_start_asks_for_the_state_of_the_run_wanted() -> None:
    (query,) = tracker(run="lm").start().queries
    assert (query.verb, query.run) == ("state", "lm")


def test_late_joiner_gets_what_fires_then_what_comes() -> None:
    daemon = Daemon()
    daemon.publish(alert_id="over")
    daemon.publish(alert_id="on")
    daemon.publish(alert_id="over", state="resolved")
    subscriber = tracker()
    assert seqs(settle(daemon, subscriber, subscriber.start())) == [2]
    assert seqs(subscriber.on_event(daemon.publish()).items) == [4]


def test_live_event_that_the_state_covers_comes_once() -> None:
    daemon, subscriber = Daemon(), tracker()
    (query,) = subscriber.start().queries
    event = daemon.publish()
    assert subscriber.on_event(event).items == ()
    assert seqs(subscriber.on_reply(daemon.answer(query)).items) == [1]


def test_state_that_overtakes_a_live_event_shows_it_once() -> None:
    daemon, subscriber = Daemon(), tracker()
    (query,) = subscriber.start().queries
    event = daemon.publish()
    assert seqs(subscriber.on_reply(daemon.answer(query)).items) == [1]
    assert subscriber.on_event(event) == Outcome()


def test_what_fires_comes_before_live_events_that_came_first() -> None:
    daemon, subscriber = Daemon(), tracker("alert", "measurement")
    daemon.publish()
    (query,) = subscriber.start().queries
    reply = daemon.answer(query)
    assert subscriber.on_event(daemon.publish(state="info")).items == ()
    assert subscriber.on_event(daemon.publish(kind="measurement")).items == ()
    items = subscriber.on_reply(reply).items
    assert [(item.stream, item.seq) for item in items] == [("alert", 1), ("alert", 2), ("measurement", 1)]


def test_slow_joiner_learns_from_the_first_heartbeat_what_it_missed() -> None:
    """An event between the state and the moment the subscription takes effect, told by a heartbeat nobody heard."""
    daemon, subscriber = Daemon(), tracker()
    settle(daemon, subscriber, subscriber.start())
    daemon.publish()
    daemon.heartbeat()
    assert seqs(settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat()))) == [1]


def test_state_older_than_the_first_heartbeat_is_asked_for_again() -> None:
    daemon, subscriber = Daemon(), tracker()
    (query,) = subscriber.start().queries
    old = daemon.answer(query)
    daemon.publish()
    daemon.heartbeat()
    assert subscriber.on_event(daemon.heartbeat()).queries == ()
    assert seqs(settle(daemon, subscriber, subscriber.on_reply(old))) == [1]


def test_first_event_of_a_new_run_lost_is_fetched() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish(run="new")
    assert seqs(settle(daemon, subscriber, subscriber.on_event(daemon.publish(run="new")))) == [1, 2]


def test_truncated_state_begins_unlisted_topics_where_they_are() -> None:
    daemon = Daemon()
    for _ in range(5):
        daemon.publish(run="unlisted")
    daemon.truncated = True
    subscriber = tracker()
    (query,) = subscriber.start().queries
    body = {"numbers": [], "alerts": [], "truncated": True}
    assert subscriber.on_reply(Reply(query.query_id, STREAM, body)).items == ()
    assert subscriber.truncated
    outcome = subscriber.on_event(daemon.publish(run="unlisted"))
    assert seqs(outcome.items) == [6] and outcome.queries == ()


def test_truncated_state_keeps_events_that_came_before_it() -> None:
    daemon = Daemon()
    daemon.publish()
    subscriber = tracker()
    (query,) = subscriber.start().queries
    subscriber.on_event(daemon.publish())
    outcome = subscriber.on_reply(Reply(query.query_id, STREAM, {"truncated": True}))
    assert seqs(outcome.items) == [2] and outcome.queries == ()


def test_hole_between_the_state_and_the_first_live_event_is_filled() -> None:
    daemon, subscriber = Daemon(), tracker("measurement")
    daemon.publish(kind="measurement")
    (query,) = subscriber.start().queries
    reply = daemon.answer(query)
    daemon.publish(kind="measurement")
    subscriber.on_event(daemon.publish(kind="measurement"))
    assert seqs(settle(daemon, subscriber, subscriber.on_reply(reply))) == [2, 3]


def test_alert_listed_without_its_number_is_not_shown_twice() -> None:
    daemon, subscriber = Daemon(), tracker()
    (query,) = subscriber.start().queries
    event = daemon.publish()
    reply = Reply(query.query_id, STREAM, {"alerts": [event.body], "truncated": True})
    assert seqs(subscriber.on_reply(reply).items) == [1]
    assert subscriber.on_event(event) == Outcome()


def test_alert_that_has_ended_is_not_brought_back_by_an_older_state() -> None:
    daemon = Daemon(ring=1)
    subscriber = joined(daemon)
    daemon.publish(alert_id="x")
    (resume,) = subscriber.on_event(daemon.publish(alert_id="y")).queries
    outcome = subscriber.on_reply(daemon.answer(resume))
    assert [gap.last_seq for gap in outcome.gaps] == [1]
    old = daemon.answer(outcome.queries[0])
    assert subscriber.on_event(daemon.publish(alert_id="x", state="resolved")).items
    assert subscriber.on_reply(old).items == ()
