"""Streams that end and others that begin: a history that cannot be written, crashes, restarts of either side."""

from __future__ import annotations

from typing import Any

import pytest
from simulated_daemon import OTHER, STREAM, Daemon, again, joined, settle, tracker

from rankd_client.stream import Gap, Item, Outcome, StreamTracker
from rankd_client.stream.topics import MAX_STREAMS
from rankd_client.wire import Query, Reply

THIRD = "00000000000000cc"


def heard(daemon: Daemon, subscriber: StreamTracker) -> list[tuple[str, int]]:
    """(stream, number) of what comes from a heartbeat on, all questions answered."""
    items = settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat()))
    return [(item.stream_id, item.seq) for item in items]


def started(daemon: Daemon, subscriber: StreamTracker) -> list[tuple[str, int]]:
    items = settle(daemon, subscriber, subscriber.start())
    return [(item.stream_id, item.seq) for item in items]


def test_the_rest_of_a_stream_comes_before_the_next() -> None:
    subscriber = joined(daemon := Daemon())
    subscriber.on_event(daemon.publish())
    daemon.publish()
    daemon.publish()
    daemon.detach(OTHER)
    outcome = subscriber.on_event(daemon.publish())
    assert outcome.items == () and [query.verb for query in outcome.queries] == ["state"]
    items = settle(daemon, subscriber, outcome)
    assert [(item.stream_id, item.seq) for item in items] == [(STREAM, 2), (STREAM, 3), (OTHER, 1)]
    assert not subscriber.gaps


def test_the_rest_of_a_stream_longer_than_a_reply_is_fetched_in_pieces() -> None:
    subscriber = joined(daemon := Daemon(reply_events=2))
    for _ in range(7):
        daemon.publish()
    daemon.detach(OTHER)
    daemon.publish()
    assert heard(daemon, subscriber) == [*((STREAM, n) for n in range(1, 8)), (OTHER, 1)]


def test_what_waited_in_a_stream_that_nobody_can_give_any_more_is_yielded() -> None:
    subscriber = joined(daemon := Daemon(STREAM))
    daemon.publish()
    assert subscriber.on_event(daemon.publish()).items == ()
    new = Daemon(OTHER)
    new.publish()
    assert heard(new, subscriber) == [(STREAM, 2), (OTHER, 1)]
    assert list(subscriber.gaps) == [Gap(STREAM, "alert", "r", 1, 1)]


def test_what_was_not_heard_of_in_a_stream_that_nobody_knows_is_no_gap() -> None:
    subscriber = joined(daemon := Daemon())
    daemon.publish()
    new = Daemon(OTHER)
    new.publish()
    assert heard(new, subscriber) == [(OTHER, 1)] and not subscriber.gaps


def test_a_daemon_that_takes_no_stream_id_is_not_believed_about_a_former_stream() -> None:
    """It answers as if it had been asked about the current one."""
    subscriber = joined(daemon := Daemon())
    subscriber.on_event(daemon.publish())
    new = Daemon(OTHER)
    for _ in range(3):
        new.publish()
    queries = list(subscriber.on_event(new.heartbeat()).queries)
    items: list[Item] = []
    while queries:
        query = queries.pop(0)
        query = Query(query.verb, query.query_id, query.kind, query.run, query.from_seq)
        outcome = subscriber.on_reply(new.answer(query))
        items += outcome.items
        queries += outcome.queries
    assert [(item.stream_id, item.seq) for item in items] == [(OTHER, 1), (OTHER, 2), (OTHER, 3)]
    assert not subscriber.gaps


def test_a_topic_that_began_in_the_rest_of_a_stream_is_found_by_the_state() -> None:
    subscriber = joined(daemon := Daemon(tell_streams=True))
    daemon.publish(run="new", state="rebased")
    daemon.detach(OTHER)
    assert heard(daemon, subscriber) == [(STREAM, 1)]


def test_a_topic_that_began_in_the_rest_of_a_stream_is_read_from_its_beginning() -> None:
    subscriber = joined(daemon := Daemon())
    daemon.publish(run="new", state="rebased")
    daemon.detach(OTHER)
    assert heard(daemon, subscriber) == []  # nothing of it is in the current stream yet
    items = settle(daemon, subscriber, subscriber.on_event(daemon.publish(run="new")))
    assert [(item.stream_id, item.seq) for item in items] == [(STREAM, 1), (OTHER, 1)]


def test_back_in_a_stream_it_goes_on_where_it_was() -> None:
    """The daemon crashed while its history could not be written."""
    subscriber = joined(daemon := Daemon(tell_streams=True))
    subscriber.on_event(daemon.publish())
    daemon.detach(OTHER)
    daemon.publish(alert_id="lost")
    assert heard(daemon, subscriber) == [(OTHER, 1)]
    daemon.crash()
    daemon.publish()
    assert heard(daemon, subscriber) == [(STREAM, 2)]
    assert subscriber.stream_id == STREAM and not subscriber.gaps


def test_what_a_lost_stream_told_is_not_told_again_when_it_is_measured_again() -> None:
    subscriber = joined(daemon := Daemon(tell_streams=True))
    daemon.detach(OTHER)
    daemon.publish(alert_id="x")
    assert heard(daemon, subscriber) == [(OTHER, 1)]
    daemon.crash()
    daemon.publish(alert_id="x")  # the trainer pushed again what was not recorded
    daemon.publish(alert_id="y")
    assert heard(daemon, subscriber) == [(STREAM, 2)]
    daemon.publish(alert_id="x")  # and once more, which is news
    assert heard(daemon, subscriber) == [(STREAM, 3)]


def test_streams_that_came_and_went_while_the_subscriber_was_away_are_read() -> None:
    subscriber = joined(daemon := Daemon(tell_streams=True))
    subscriber.on_event(daemon.publish())
    daemon.publish()
    for stream_id in (OTHER, THIRD):
        daemon.detach(stream_id)
        daemon.recover()
        daemon.publish()
    following = again(subscriber)
    assert sorted(started(daemon, following)) == sorted([(STREAM, 2), (OTHER, 1), (THIRD, 1)])
    assert not following.gaps


def test_a_subscriber_that_comes_back_is_shown_only_what_is_new() -> None:
    daemon = Daemon()
    daemon.publish(alert_id="told")
    subscriber = joined(daemon)
    daemon.publish(alert_id="meanwhile")
    following = again(subscriber)
    assert started(daemon, following) == [(STREAM, 2)]
    assert started(daemon, again(following)) == []


def test_a_subscriber_that_comes_back_is_shown_what_it_was_to_show() -> None:
    daemon = Daemon()
    daemon.publish(alert_id="told")
    daemon.publish(alert_id="owed")
    (told, owed) = settle(daemon, first := tracker(), first.start())
    following = tracker()
    following.restore(first.places(), True, {owed.mark})
    assert [item.alert_id for item in settle(daemon, following, following.start())] == ["owed"]
    assert told.mark.in_turn is owed.mark.in_turn is False and following.owed == set()


def test_a_subscriber_that_came_before_any_run_gets_all_that_came_while_it_was_away() -> None:
    subscriber = joined(daemon := Daemon())
    for _ in range(3):
        daemon.publish()
    assert started(daemon, again(subscriber)) == [(STREAM, 1), (STREAM, 2), (STREAM, 3)]


def test_places_are_of_a_bounded_number_of_streams() -> None:
    subscriber = joined(daemon := Daemon())
    for i in range(3 * MAX_STREAMS):
        daemon.detach(f"{i:016x}")
        daemon.publish()
        assert heard(daemon, subscriber) == [(f"{i:016x}", 1)]
    assert len(subscriber.places()) == MAX_STREAMS


@pytest.mark.parametrize(
    "streams", [[OTHER, OTHER, STREAM], [STREAM, OTHER, STREAM], [THIRD] * 500, 7, [7], [OTHER, THIRD, OTHER], ["x"]]
)
def test_whatever_order_of_streams_is_claimed_it_comes_to_an_end(streams: Any) -> None:
    subscriber = joined(daemon := Daemon())
    subscriber.on_event(daemon.publish())
    for stream_id in (OTHER, THIRD, STREAM, OTHER):
        new = Daemon(stream_id)
        event = new.publish()
        new.publish()
        outcome, queries = subscriber.on_event(event), []
        queries += outcome.queries
        while queries:
            query = queries.pop(0)
            reply = new.answer(query)
            body = {**reply.body, "streams": streams}
            queries += subscriber.on_reply(Reply(reply.query_id, reply.stream_id, body, reply.events)).queries
        assert all(len(chain) == 1 for chain in [subscriber._topics.get(("alert", "r")).chain()])


def test_a_key_that_may_not_subscribe_is_told_so() -> None:
    subscriber = tracker()
    (query,) = subscriber.start().queries
    assert subscriber.on_reply(Reply(0, STREAM, error="not_allowed")) == Outcome() and not subscriber.refused
    subscriber.on_reply(Reply(query.query_id, STREAM, error="not_allowed"))
    assert subscriber.refused == "not_allowed"
