"""Events that were missed, over a channel that loses things."""

from __future__ import annotations

from hypothesis import example, given, settings
from hypothesis import strategies as st
from simulated_daemon import STREAM, Daemon, drain, joined, seqs, settle

from rankd_client.stream import Gap, Outcome, StreamTracker
from rankd_client.stream.filters import Wanted
from rankd_client.stream.questions import MAX_RESUMES
from rankd_client.stream.topics import Topics
from rankd_client.wire import Event, Query


def test_hole_is_filled_in_order_and_later_events_wait() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish()
    daemon.publish()
    outcome = subscriber.on_event(daemon.publish())
    assert outcome.items == ()
    (query,) = outcome.queries
    assert (query.verb, query.kind, query.run, query.from_seq) == ("resume", "alert", "r", 1)
    reply = daemon.answer(query)
    assert subscriber.on_event(daemon.publish()) == Outcome()
    assert seqs(subscriber.on_reply(reply).items) == [1, 2, 3, 4]


def test_last_event_lost_is_found_by_the_heartbeat() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish()
    assert seqs(settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat()))) == [1]


def test_lost_heartbeat_is_made_up_for_by_the_state() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    daemon.publish(kind="measurement")
    daemon.publish()
    daemon.heartbeat()
    outcome = subscriber.on_event(daemon.heartbeat())
    assert [query.verb for query in outcome.queries] == ["state"]
    assert seqs(settle(daemon, subscriber, outcome)) == [1]


def test_hole_longer_than_a_reply_is_fetched_in_pieces() -> None:
    daemon = Daemon(reply_events=3)
    subscriber = joined(daemon)
    for _ in range(10):
        daemon.publish()
    assert seqs(settle(daemon, subscriber, subscriber.on_event(daemon.publish()))) == list(range(1, 12))


def test_what_the_daemon_no_longer_has_is_a_gap() -> None:
    daemon = Daemon(ring=2)
    subscriber = joined(daemon, "measurement")
    for _ in range(4):
        daemon.publish(kind="measurement")
    (query,) = subscriber.on_event(daemon.publish(kind="measurement")).queries
    outcome = subscriber.on_reply(daemon.answer(query))
    assert seqs(outcome.items) == [4, 5]
    assert outcome.gaps == (Gap(STREAM, "measurement", "r", 1, 3),) == tuple(subscriber.gaps)
    assert outcome.gaps[0].num_events == 3


def test_waiting_event_that_the_daemon_forgot_meanwhile_is_yielded() -> None:
    daemon = Daemon(ring=1)
    subscriber = joined(daemon, "measurement")
    daemon.publish(kind="measurement")
    (query,) = subscriber.on_event(daemon.publish(kind="measurement")).queries
    daemon.publish(kind="measurement")
    outcome = subscriber.on_reply(daemon.answer(query))
    assert seqs(outcome.items) == [2, 3]
    assert [(gap.first_seq, gap.last_seq) for gap in outcome.gaps] == [(1, 1)]


def test_alert_lost_for_good_that_still_fires_is_shown() -> None:
    daemon = Daemon(ring=1)
    subscriber = joined(daemon)
    daemon.publish(alert_id="lost")
    items = settle(daemon, subscriber, subscriber.on_event(daemon.publish(alert_id="live")))
    assert sorted(item.alert_id for item in items) == ["live", "lost"]


def test_runs_and_kinds_do_not_wait_for_one_another() -> None:
    daemon = Daemon()
    subscriber = joined(daemon, "alert", "measurement")
    daemon.publish(run="a")
    assert subscriber.on_event(daemon.publish(run="a")).items == ()
    assert seqs(subscriber.on_event(daemon.publish(run="b")).items) == [1]
    assert seqs(subscriber.on_event(daemon.publish(run="a", kind="measurement")).items) == [1]


def test_repeated_and_older_events_are_not_yielded_again() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    first, second = daemon.publish(), daemon.publish()
    assert [seqs(subscriber.on_event(event).items) for event in (first, second, first, second)] == [[1], [2], [], []]


def test_waiting_events_are_bounded_and_fetched_again() -> None:
    daemon = Daemon()
    topics = Topics(max_waiting=2)
    subscriber = StreamTracker(Wanted(), topics)
    settle(daemon, subscriber, subscriber.start())
    daemon.publish()
    (query,) = subscriber.on_event(daemon.publish()).queries
    late = daemon.answer(query)
    for _ in range(5):
        assert subscriber.on_event(daemon.publish()) == Outcome()
    topic = topics.find(("alert", "r"))
    assert topic is not None and sorted(topic.waiting) == [2, 3]
    assert seqs(settle(daemon, subscriber, subscriber.on_reply(late))) == list(range(1, 8))


def test_topics_are_bounded_and_one_that_comes_back_goes_on() -> None:
    daemon = Daemon()
    subscriber = StreamTracker(Wanted(), Topics(max_topics=2))
    settle(daemon, subscriber, subscriber.start())
    for run in ("a", "b", "c"):
        assert seqs(subscriber.on_event(daemon.publish(run=run)).items) == [1]
    daemon.publish(run="a")
    outcome = subscriber.on_event(daemon.publish(run="a"))
    assert seqs(outcome.items) == [3] and outcome.queries == ()


def test_resumes_under_way_are_bounded() -> None:
    daemon = Daemon()
    subscriber = joined(daemon)
    queries: list[Query] = []
    for i in range(3 * MAX_RESUMES):
        daemon.publish(run=f"run-{i}")
        queries += subscriber.on_event(daemon.publish(run=f"run-{i}")).queries
    assert len(queries) <= MAX_RESUMES + 1
    items = settle(daemon, subscriber, Outcome(queries=tuple(queries)))
    assert len(items) == 6 * MAX_RESUMES


RUNS = ("a", "b")
ACTIONS = ("publish a", "publish b", "heartbeat", "deliver", "lose", "answer", "tick")


@settings(deadline=None, max_examples=200)
@given(
    actions=st.lists(st.sampled_from(ACTIONS), max_size=60),
    before=st.integers(0, 3),
    ring=st.sampled_from([1, 2, 5, 1000]),
    reply_events=st.sampled_from([1, 2, 1000]),
    max_waiting=st.sampled_from([0, 1, 1000]),
)
@example(["publish a", "lose", "heartbeat", "lose", "deliver"], 1, 1000, 1000, 1000)
def test_whatever_is_lost_everything_kept_is_yielded_once_and_in_order(
    actions: list[str], before: int, ring: int, reply_events: int, max_waiting: int
) -> None:
    daemon = Daemon(ring=ring, reply_events=reply_events)
    topics = Topics(max_waiting=max_waiting)
    subscriber = StreamTracker(Wanted(kinds=("alert", "measurement")), topics)
    for _ in range(before):
        daemon.publish(run="a", kind="measurement")
    questions = list(subscriber.start().queries)
    items = settle(daemon, subscriber, Outcome(queries=(questions.pop(),)))
    wire: list[Event] = []
    for action in actions:
        outcome = Outcome()
        if action.startswith("publish"):
            wire.append(daemon.publish(run=action[-1], kind="measurement"))
        elif action == "heartbeat":
            wire.append(daemon.heartbeat())
        elif action == "deliver" and wire:
            outcome = subscriber.on_event(wire.pop(0))
        elif action == "lose" and wire:
            wire.pop(0)
        elif action == "answer" and questions:
            outcome = subscriber.on_reply(daemon.answer(questions.pop(0)))
        elif action == "tick":
            outcome = subscriber.on_tick()
        items += outcome.items
        questions += outcome.queries
    items += drain(daemon, subscriber, wire, questions)

    for run in RUNS:
        start = before if run == "a" else 0
        got = [item.seq for item in items if item.run == run]
        lost = [n for gap in subscriber.gaps if gap.run == run for n in range(gap.first_seq, gap.last_seq + 1)]
        last = len(daemon.topics.get(("measurement", run), []))
        assert got == sorted(set(got))
        assert sorted(got + lost) == list(range(start + 1, last + 1))
        if subscriber.num_unanswered == 0:
            assert not {event.seq for event in daemon.kept(("measurement", run))} & set(lost)
    assert topics._num_waiting == 0  # or the room for those that wait would shrink for good
    if ring == 1000 and subscriber.num_unanswered == 0:
        assert not subscriber.gaps
