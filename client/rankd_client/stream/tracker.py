"""The subscriber's side of the stream as one state machine.

Numbers count per topic from 1, so a hole shows what was missed, and a resume query brings it back. Heartbeats name the
numbers that changed, so that a lost last event shows too; a hole in the heartbeats' own numbers leads to a state query.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from rankd_client.shown import Shown
from rankd_client.stream.claims import Claims, Key, read_claims, valid_topic
from rankd_client.stream.filters import Wanted
from rankd_client.stream.items import Gap, Item, Outcome
from rankd_client.stream.questions import Pending, Questions
from rankd_client.stream.topics import Topic, Topics
from rankd_client.wire import Event, Reply

MAX_GAPS = 1_000
"""Gaps kept for `gaps`; every one is also in its Outcome."""

SILENT_TICKS = 3
"""Ticks, a second each, without one of the daemon's heartbeats, a second apart, after which it counts as absent."""


class StreamTracker:
    """Takes events, replies and ticks; gives items, queries and gaps.

    Alerts that fire already are shown first. From then on every event of a topic is yielded once and in order, and what
    the daemon no longer has is a Gap. Nothing that a daemon sends raises: what makes no sense is counted.
    """

    def __init__(self, wanted: Wanted, topics: Topics | None = None) -> None:
        self.stream_id = ""
        self.gaps: deque[Gap] = deque(maxlen=MAX_GAPS)
        self.num_malformed = 0
        self.num_unanswered = 0
        """Queries given up while the daemon's heartbeats came."""
        self.truncated = False
        """The daemon's last state was too long for one reply: some alerts firing then may not have been shown."""
        self.dropped: Mapping[str, Any] = {}
        """The drop counters of the daemon's last heartbeat."""
        self.absent = False
        """Its heartbeats have stopped, or never began."""
        self._wanted = wanted
        self._topics = topics or Topics()
        self._questions = Questions(wanted.run)
        self._shown = Shown()
        self._behind: dict[Key, None] = {}
        self._joined = False  # the first state is known: from there on nothing may be missed
        self._next_heartbeat: int | None = None
        self._heard = False  # since the last tick
        self._num_silent_ticks = 0
        self._items: list[Item] = []
        self._new_gaps: list[Gap] = []

    def start(self) -> Outcome:
        self._questions.ask_state()
        return self._outcome()

    def on_event(self, event: Event) -> Outcome:
        if event.stream_id != self.stream_id:
            self._on_stream(event.stream_id)
        if event.kind == "heartbeat":
            self._on_heartbeat(event)
        elif not valid_topic(event.kind, event.run, event.seq):
            self.num_malformed += 1
        elif self._wanted.topic(event.kind, event.run):
            self._on_numbered(event)
        return self._outcome()

    def on_reply(self, reply: Reply) -> Outcome:
        """Late, repeated and foreign replies and refusals change nothing: their query is asked again in time."""
        pending = self._questions.find(reply.query_id)
        if pending is None or reply.error or (self.stream_id and reply.stream_id != self.stream_id):
            return Outcome()
        self.stream_id = reply.stream_id
        self._questions.close(reply.query_id)
        if pending.query.verb == "state":
            claims = self._claims(reply.body)
            self.truncated = claims.truncated
            self._on_state(claims)
        else:
            self._on_resume(pending, reply)
        return self._outcome()

    def on_tick(self) -> Outcome:
        """A second went by, and what came in it was read. Not counted by heartbeats: for a reader that was busy, many
        of them come at once, ahead of the answers that came as early."""
        self._num_silent_ticks = 0 if self._heard else self._num_silent_ticks + 1
        if self._heard:
            for pending in self._questions.on_tick():
                self._give_up(pending)
        elif self._num_silent_ticks % SILENT_TICKS == 0:
            self.absent = True
            self._questions.ask_again()
        self._heard = False
        return self._outcome()

    def on_malformed(self) -> None:
        """A message that was no event or reply at all."""
        self.num_malformed += 1

    def _on_stream(self, stream_id: str) -> None:
        """The first event, or a daemon that started without its history: all that it has numbered since, it numbered
        while we were here, so that it is read from number 1."""
        before, self.stream_id = self.stream_id, stream_id
        if not before:
            return
        self._topics.clear()
        self._topics.from_one = self._joined
        self._behind.clear()
        self._questions.clear()
        self._next_heartbeat = None
        self._questions.ask_state()

    def _on_heartbeat(self, event: Event) -> None:
        self._heard = True
        expected, self._next_heartbeat = self._next_heartbeat, event.seq + 1
        # The first heartbeat proves that the subscription has taken effect: a state from before may be too old.
        if event.seq != expected or self.absent:
            self.absent = False
            self._questions.ask_state()
        dropped = event.body.get("dropped")
        self.dropped = dropped if isinstance(dropped, Mapping) else self.dropped
        for key, newest in self._claims(event.body).numbers.items():
            if self._joined:  # until then the state that the first heartbeat made us ask for covers them
                self._reach(key, newest)

    def _on_numbered(self, event: Event) -> None:
        key = (event.kind, event.run)
        topic = self._topics.get(key)
        if topic.seen is None and self._joined:
            topic.seen = event.seq - 1
        if topic.seen is not None and event.seq <= topic.seen:
            return
        if topic.seen == event.seq - 1:
            topic.seen = event.seq
            self._deliver(event)
        else:
            self._topics.wait(topic, event)
        self._reach(key, event.seq)

    def _reach(self, key: Key, newest: int) -> None:
        """The topic's numbers have come to `newest`."""
        topic = self._topics.get(key)
        topic.newest = max(topic.newest, newest)
        if topic.seen is None and self._joined:
            topic.seen = newest
        self._settle(key, topic)

    def _settle(self, key: Key, topic: Topic) -> None:
        """Yield what waited for its turn; what is missing is asked for."""
        while (event := self._topics.next_event(topic)) is not None:
            self._deliver(event)
        if topic.behind and not topic.asked:
            self._behind[key] = None

    def _deliver(self, event: Event) -> None:
        # Shown even if an earlier stream had one of this id: a job that is run again and fails alike is a new alarm.
        if event.kind == "alert":
            self._shown.add(event.body)
        if self._wanted.layer(event.body):
            self._items.append(Item(event.body, event.kind))

    def _on_state(self, claims: Claims) -> None:
        numbers = claims.numbers
        for alert in claims.firing:  # a truncated list of numbers may lack theirs
            if alert["stream_id"] == self.stream_id:
                key = ("alert", alert["run"])
                numbers[key] = max(numbers.get(key, 0), alert["seq"])
        if not self._joined:
            self._join(numbers, complete=not claims.truncated)
        for alert in claims.firing:
            self._show_firing(alert)
        for key, newest in numbers.items():
            self._reach(key, newest)
        for key in self._topics:  # also those of which only events were heard
            self._settle(key, self._topics.get(key))

    def _join(self, numbers: dict[Key, int], complete: bool) -> None:
        """Each topic begins behind the state, or at the first event that came before it, whichever is less."""
        self._joined, self._topics.from_one = True, complete
        for key in self._topics:
            if key not in numbers and complete:
                numbers[key] = 0
        for key in {*self._topics, *numbers}:
            topic = self._topics.get(key)
            first = min(topic.waiting, default=None)
            if first is not None:
                topic.seen = min(first - 1, numbers.get(key, first - 1))
            else:
                topic.seen = numbers.get(key)

    def _show_firing(self, alert: dict[str, Any]) -> None:
        seen = self._topics.get(("alert", alert["run"])).seen
        if alert["stream_id"] == self.stream_id and seen is not None and alert["seq"] > seen:
            return  # comes as an event of its own, in order
        if self._shown.add(alert) and self._wanted.layer(alert):
            self._items.append(Item(alert, "alert"))

    def _on_resume(self, pending: Pending, reply: Reply) -> None:
        topic = self._topics.find(pending.key)
        if topic is None or topic.seen is None:
            return
        events = {
            event.seq: event
            for event in reply.events
            if (event.kind, event.run) == pending.key and event.stream_id == self.stream_id
        }
        self.num_malformed += len(reply.events) - len(events)
        last = reply.body.get("last")
        newest = min(last, pending.newest) if type(last) is int else pending.newest
        self._advance(pending.key, topic, events, max(events, default=newest))
        if topic.seen < pending.query.from_seq:  # the daemon knows nothing of numbers that it told itself
            self._topics.forget_waiting(topic, topic.newest)
            topic.newest = topic.seen
        self._settle(pending.key, topic)

    def _advance(self, key: Key, topic: Topic, events: Mapping[int, Event], through: int) -> None:
        topic.asked = False
        for passed in self._topics.advance(topic, events, through):
            if isinstance(passed, tuple):
                gap = Gap(self.stream_id, *key, *passed)
                self.gaps.append(gap)
                self._new_gaps.append(gap)
                if gap.kind == "alert":
                    self._questions.ask_state()  # one that was lost and still fires is shown all the same
            else:
                self._deliver(passed)

    def _give_up(self, pending: Pending) -> None:
        """The daemon lives but does not answer: go on with what comes by itself."""
        self.num_unanswered += 1
        topic = self._topics.find(pending.key)
        if pending.query.verb == "state":
            self._on_state(Claims(truncated=True))
        elif topic is not None and topic.seen is not None:
            self._advance(pending.key, topic, {}, pending.newest)
            self._settle(pending.key, topic)

    def _claims(self, body: Mapping[str, Any]) -> Claims:
        claims = read_claims(body)
        self.num_malformed += claims.num_malformed
        claims.numbers = {key: seq for key, seq in claims.numbers.items() if self._wanted.topic(*key)}
        claims.firing = [alert for alert in claims.firing if self._wanted.topic("alert", alert["run"])]
        return claims

    def _outcome(self) -> Outcome:
        while self._behind and not self._questions.full:
            key = next(iter(self._behind))
            del self._behind[key]
            topic = self._topics.find(key)
            if topic is not None and topic.seen is not None and topic.behind and not topic.asked:
                topic.asked = True
                self._questions.ask_resume(key, topic.seen + 1, topic.newest)
        outcome = Outcome(tuple(self._items), self._questions.take(), tuple(self._new_gaps))
        self._items, self._new_gaps = [], []
        return outcome
