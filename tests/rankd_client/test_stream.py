"""The subscriber's state machine, fed by hand and by a daemon's bookkeeping over a channel that loses things."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from rankd_client.stream import Gap, Item, Outcome, StreamTracker
from rankd_client.stream.filters import Wanted
from rankd_client.stream.questions import MAX_RESUMES, MAX_TRIES, PATIENCE_TICKS
from rankd_client.stream.topics import Topics
from rankd_client.stream.presence import SILENT_TICKS
from rankd_client.wire import Event, Query, Reply, decode_event, decode_reply, encode_event, encode_query, encode_reply

STREAM, OTHER = "00000000000000aa", "00000000000000bb"


class Daemon:
    """Numbers and keeps events, and answers queries, as docs/protocol.md asks of a daemon. `ring` is per topic."""

    def __init__(self, stream_id: str = STREAM, ring: int = 1 << 60, reply_events: int = 1000) -> None:
        self.stream_id, self.ring, self.reply_events = stream_id, ring, reply_events
        self.topics: dict[tuple[str, str], list[Event]] = {}
        self.changed: dict[tuple[str, str], int] = {}
        self.firing: dict[str, dict[str, Any]] = {}
        self.heartbeats = 0
        self.truncated = False

    def publish(self, run: str = "r", kind: str = "alert", **body: Any) -> Event:
        events = self.topics.setdefault((kind, run), [])
        seq = len(events) + 1
        if kind == "alert":
            body = {"alert_id": f"{self.stream_id}-{run}-{seq}", "state": "firing", "layer": "a"} | body
        body |= {"run": run, "stream_id": self.stream_id, "seq": seq}
        if kind == "alert":
            self.firing.pop(body["alert_id"], None)
            if body["state"] == "firing":
                self.firing[body["alert_id"]] = body
        events.append(Event(kind, run, self.stream_id, seq, body))
        self.changed[kind, run] = seq
        return wired(events[-1])

    def heartbeat(self) -> Event:
        self.heartbeats += 1
        numbers = [[kind, run, seq] for (kind, run), seq in self.changed.items()]
        self.changed.clear()
        body = {"numbers": numbers, "dropped": {"dropped_events": 3}, "time": 0.0, "state": "serving"}
        return wired(Event("heartbeat", "", self.stream_id, self.heartbeats, body))

    def kept(self, kind: str, run: str) -> list[Event]:
        events = self.topics.get((kind, run), [])
        return events[max(0, len(events) - self.ring) :]

    def answer(self, query: Query) -> Reply:
        encode_query(query)  # must be sendable
        if query.verb == "state":
            wanted = [key for key in self.topics if query.run in (None, key[1])]
            numbers = [[kind, run, len(self.topics[kind, run])] for kind, run in wanted]
            alerts = [alert for alert in self.firing.values() if query.run in (None, alert["run"])]
            body = {"numbers": numbers, "alerts": alerts, "truncated": self.truncated}
            return wired_reply(Reply(query.query_id, self.stream_id, body))
        assert query.run is not None
        kept = self.kept(query.kind, query.run)
        last = len(self.topics.get((query.kind, query.run), []))
        events = tuple(event for event in kept if event.seq >= query.from_seq)[: self.reply_events]
        body = {"first": kept[0].seq if kept else 0, "last": last}
        return wired_reply(Reply(query.query_id, self.stream_id, body, events))


def wired(event: Event) -> Event:
    return decode_event(encode_event(event))


def wired_reply(reply: Reply) -> Reply:
    return decode_reply(encode_reply(reply))


def tracker(*kinds: str, run: str | None = None, layers: tuple[str, ...] | None = None) -> StreamTracker:
    return StreamTracker(Wanted(run, layers, kinds or ("alert",)))


def joined(daemon: Daemon, *kinds: str, **wanted: Any) -> StreamTracker:
    """A tracker that has had its state and one heartbeat."""
    subscriber = tracker(*kinds, **wanted)
    settle(daemon, subscriber, subscriber.start())
    settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat()))
    return subscriber


def settle(daemon: Daemon, subscriber: StreamTracker, outcome: Outcome) -> list[Item]:
    """Answer every query until none is left. Returns all the items."""
    items, queries = list(outcome.items), list(outcome.queries)
    for _ in range(1000):
        if not queries:
            return items
        outcome = subscriber.on_reply(daemon.answer(queries.pop(0)))
        items += outcome.items
        queries += outcome.queries
    raise AssertionError("the tracker asks without end")


def seqs(items: Any) -> list[int]:
    return [item.seq for item in items]


# --- items


def test_item_is_a_map_whose_keys_are_attributes() -> None:
    item = Item({"layer": "a", "stream": "a key of the daemon's"}, "alert")
    assert item.layer == item["layer"] == "a"
    assert item.stream == "alert" and item["stream"] == "a key of the daemon's"
    assert dict(item) == {"layer": "a", "stream": "a key of the daemon's"}
    with pytest.raises(AttributeError, match="no key 'absent'"):
        _ = item.absent


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_item_survives_copies(again: Any) -> None:
    item = again(Item({"layer": "a"}, "measurement"))
    assert item == {"layer": "a"} and item.stream == "measurement"


# --- joining


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


# --- holes


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


# --- filters


def test_other_runs_and_kinds_are_not_followed() -> None:
    daemon = Daemon()
    daemon.publish(run="other")
    subscriber = joined(daemon, run="lm")
    daemon.publish(run="other")
    daemon.publish(run="lm", kind="measurement")
    assert settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat())) == []
    assert subscriber.on_event(daemon.publish(run="other")) == Outcome()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"layer": "h.0.mlp.up"}, True),
        ({"layer": "h.0.attn"}, False),
        ({"layer": None}, True),
        ({}, True),
        ({"layer": None, "layers": ["h.0.attn", "h.1.mlp.up"]}, True),
        ({"layer": None, "layers": ["h.0.attn"]}, False),
        ({"layer": 7}, False),
        ({"layer": ["h.0.mlp.up"]}, False),
        ({"layer": None, "layers": 7}, False),
        ({"layer": "h.0.mlp." + "u" * 2000}, False),
    ],
)
def test_layers_are_globs_and_whole_runs_concern_all(body: dict[str, Any], wanted: bool) -> None:
    assert Wanted(layers=("*.mlp.*",)).layer(body) is wanted
    assert Wanted().layer(body)


def test_layer_not_wanted_leaves_no_hole() -> None:
    daemon = Daemon()
    subscriber = joined(daemon, layers=("b*",))
    assert subscriber.on_event(daemon.publish(layer="a")) == Outcome()
    assert seqs(subscriber.on_event(daemon.publish(layer="b")).items) == [2]


# --- restarts and silence


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


# --- queries without an answer


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


# --- what a hostile or broken daemon may claim


@pytest.mark.parametrize(
    "numbers",
    [
        7,
        [7],
        [["alert", "r"]],
        [["alert", "r", "1"]],
        [["alert", "r", True]],
        [["alert", "r", 0]],
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


# --- any interleaving

RUNS = ("a", "b")
ACTIONS = ("publish a", "publish b", "heartbeat", "deliver", "lose", "answer", "tick")


def drain(daemon: Daemon, subscriber: StreamTracker, wire: list[Event], questions: list[Query]) -> list[Item]:
    """The channel is good again: what is on its way arrives, two heartbeats follow, and all is answered."""
    wire += [daemon.heartbeat(), daemon.heartbeat()]
    items: list[Item] = []
    for event in wire:
        outcome = subscriber.on_event(event)
        items += outcome.items
        questions += outcome.queries
    return items + settle(daemon, subscriber, Outcome(queries=tuple(dict.fromkeys(questions))))


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
            assert not {event.seq for event in daemon.kept("measurement", run)} & set(lost)
    assert topics._num_waiting == 0  # or the room for those that wait would shrink for good
    if ring == 1000 and subscriber.num_unanswered == 0:
        assert not subscriber.gaps


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
