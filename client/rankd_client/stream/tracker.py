"""The subscriber's side of the stream as one state machine.

Numbers count per topic from 1, so a hole shows what was missed, and a resume query brings it back. Heartbeats name the
numbers that changed, so that a lost last event shows too; a hole in the heartbeats' own numbers leads to a state query.
Places are kept by stream: where another one begins, the former is read to its end first, topic by topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Any

from rankd_client.stream.claims import Claims, Key, read_claims, valid_topic
from rankd_client.stream.filters import Wanted
from rankd_client.stream.items import Gap, Mark, Outcome
from rankd_client.stream.presence import Presence
from rankd_client.stream.questions import Pending, Questions
from rankd_client.stream.severity import Begun
from rankd_client.stream.showing import Showing
from rankd_client.stream.topics import Places, Topic, Topics
from rankd_client.wire import Event, Reply

MAX_GAPS = 1_000
"""Gaps kept for `gaps`; every one is also in its Outcome."""


class StreamTracker:
    """Takes events, replies and ticks; gives items, queries and gaps.

    Alerts that fire already are shown first. From then on every event of a topic is yielded once and in order, and what
    the daemon no longer has is a Gap. Nothing that a daemon sends raises: what makes no sense is counted.
    """

    def __init__(self, wanted: Wanted, topics: Topics | None = None) -> None:
        """`topics` with places restored: the tracker of a subscriber that was there before."""
        self.stream_id = ""
        self.gaps: deque[Gap] = deque(maxlen=MAX_GAPS)
        self.num_malformed = 0
        self.num_unanswered = 0
        """Queries given up while the daemon's heartbeats came."""
        self.truncated = False
        """The daemon's last state was too long for one reply: some alerts firing then may not have been shown."""
        self.dropped: Mapping[str, Any] = {}
        """The drop counters of the daemon's last heartbeat."""
        self.refused = ""
        """The code by which the daemon refuses to tell us anything: nothing will come."""
        self.everybody = False
        """The daemon's last state covered every namespace, which it does for administrators."""
        self.owed: set[Mark] = set()
        """Alerts behind our places that an earlier life was to show and did not."""
        self.followed = False
        """`places` say where to go on: from the first state on, nothing may be missed."""
        self._wanted = wanted
        self._topics = topics or Topics()
        self._questions = Questions(wanted.run)
        self._showing = Showing(wanted)
        self._presence = Presence()
        self._behind: dict[Key, None] = {}
        self._joined = False  # the current stream's state is known, and with it where we are in it
        self._new_gaps: list[Gap] = []

    def restore(self, places: Places, complete: bool, owed: set[Mark], begun: Begun | None = None) -> None:
        """Go on from where an earlier life was; `begun`: whose end is to be shown, however mild. Before `start`."""
        self._topics.restore(places, complete)
        self._showing.severe.begun = begun or Begun()
        self.followed, self.owed = True, owed

    @property
    def complete(self) -> bool:
        """Whether a topic that is in no stream of `places` is to be read from its number 1."""
        return self._topics.from_one

    @property
    def absent(self) -> bool:
        """The daemon's heartbeats have stopped, or never began."""
        return self._presence.absent

    @property
    def lost_streams(self) -> list[str]:
        """Current meanwhile, and no part of the history that came back: nothing of them can be asked for."""
        return self._showing.lost_streams

    def places(self) -> Places:
        """Where to go on, by stream."""
        return self._topics.places()

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
        if pending is not None and reply.error == "not_allowed":
            self.refused = reply.error
        if pending is None or reply.error or (self.stream_id and reply.stream_id != self.stream_id):
            return Outcome()
        if not self.stream_id:
            self._begin(reply.stream_id)
        self._questions.close(reply.query_id)
        if pending.query.verb == "state":
            claims = self._claims(reply.body)
            self.truncated, self.everybody = claims.truncated, claims.everybody
            self._on_state(claims)
        else:
            self._on_resume(pending, reply)
        return self._outcome()

    def on_tick(self) -> Outcome:
        """A second went by, and what came in it was read. Not counted by heartbeats: for a reader that was busy, many
        of them come at once, ahead of the answers that came as early."""
        if self._presence.on_tick():
            for pending in self._questions.on_tick():
                self._give_up(pending)
        elif self._presence.ask_again:
            self._questions.ask_again()
        return self._outcome()

    def on_malformed(self) -> None:
        """A message that was no event or reply at all."""
        self.num_malformed += 1

    def _on_stream(self, stream_id: str) -> None:
        """The first event, or a daemon whose history is another, or cannot be written."""
        first = not self.stream_id
        self._begin(stream_id)
        if not first:
            self._questions.clear()
            self._questions.ask_state()

    def _begin(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self._joined = False
        self._showing.lost_streams = self._topics.begin(stream_id, keep=self.followed)
        self._behind.clear()
        self._presence.on_stream()

    def _on_heartbeat(self, event: Event) -> None:
        # The first heartbeat proves that the subscription has taken effect: a state from before may be too old.
        if not self._presence.on_heartbeat(event.run, event.seq):
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
        if topic.seen == event.seq - 1 and topic.former is None:
            topic.seen = event.seq
            self._showing.event(event)
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
            self._showing.event(event)
        if topic.behind and not topic.turn.asked:
            self._behind[key] = None

    def _on_state(self, claims: Claims) -> None:
        numbers = claims.numbers
        for alert in claims.firing:  # a truncated list of numbers may lack theirs
            if alert["stream_id"] == self.stream_id:
                key = ("alert", alert["run"])
                numbers[key] = max(numbers.get(key, 0), alert["seq"])
        if not self.followed:
            self._topics.join(numbers, complete=not claims.truncated)
        elif not self._joined:
            lost = [stream_id for stream_id in self._showing.lost_streams if stream_id not in claims.streams]
            self._showing.lost_streams = lost
            self._topics.lay_out(claims.streams, numbers)
        self.followed = self._joined = True
        for alert in claims.firing:
            self._show_firing(alert)
        if not claims.truncated:
            self.owed.clear()  # they fire no more
        for key, newest in numbers.items():
            self._reach(key, newest)
        for key in self._topics:  # also those of which only events were heard
            self._settle(key, self._topics.get(key))

    def _show_firing(self, alert: dict[str, Any]) -> None:
        mark = Mark(alert["stream_id"], "alert", alert["run"], alert["seq"], in_turn=False)
        key = ("alert", mark.run)
        to_read = {topic.stream_id: topic for topic in self._topics.get(key).chain()}
        topic = to_read.get(mark.stream_id) or self._topics.find(key, mark.stream_id)
        if topic is not None and topic.seen is not None and mark.seq > topic.seen and mark.stream_id in to_read:
            return  # comes as an event of its own, in order
        told = topic is not None and mark.seq <= topic.told and mark not in self.owed
        self.owed.discard(mark)
        self._showing.firing(alert, mark, told)

    def _on_resume(self, pending: Pending, reply: Reply) -> None:
        topic = self._topics.find(pending.key)
        if topic is None or topic.seen is None:
            return
        turn = topic.turn
        if turn.stream_id != (pending.query.stream_id or self.stream_id):
            return
        events = {
            event.seq: event
            for event in reply.events
            if (event.kind, event.run) == pending.key and event.stream_id == turn.stream_id
        }
        self.num_malformed += len(reply.events) - len(events)
        last = reply.body.get("last")
        if turn is not topic:  # a daemon that gives events of another stream has not understood the question
            self._read_former(pending.key, topic, events, last if len(events) == len(reply.events) else None)
            return
        newest = min(last, pending.newest) if type(last) is int else pending.newest
        self._advance(pending.key, topic, events, max(events, default=newest))
        if (topic.seen or 0) < pending.query.from_seq:  # the daemon knows nothing of numbers that it told itself
            self._topics.forget_waiting(topic, topic.newest)
            topic.newest = topic.seen or 0
        self._settle(pending.key, topic)

    def _read_former(self, key: Key, topic: Topic, events: Mapping[int, Event], last: object) -> None:
        """Read on in the oldest stream that is not read to its end. Where it ended, `last`, is not believed below what
        we know: then the daemon cannot say, and only what we had heard of is known to be missed."""
        turn = topic.turn
        end = max(last, turn.newest) if type(last) is int else turn.newest
        through = max(events, default=end)
        through = through if through > (turn.seen or 0) else end  # events that were not asked for
        self._advance(key, turn, events, through)
        if through >= end:
            topic.finish_former()
        self._settle(key, topic)

    def _advance(self, key: Key, topic: Topic, events: Mapping[int, Event], through: int) -> None:
        topic.asked = False
        for passed in self._topics.advance(topic, events, through):
            if isinstance(passed, tuple):
                gap = Gap(topic.stream_id, *key, *passed)
                self.gaps.append(gap)
                self._new_gaps.append(gap)
                if gap.kind == "alert":
                    self._questions.ask_state()  # one that was lost and still fires is shown all the same
            else:
                self._showing.event(passed)

    def _give_up(self, pending: Pending) -> None:
        """The daemon lives but does not answer: go on with what comes by itself."""
        self.num_unanswered += 1
        topic = self._topics.find(pending.key)
        if pending.query.verb == "state":
            self._on_state(Claims(truncated=True))
        elif topic is not None and topic.former is not None:
            self._read_former(pending.key, topic, {}, None)
        elif topic is not None and topic.seen is not None:
            self._advance(pending.key, topic, {}, pending.newest)
            self._settle(pending.key, topic)

    def _claims(self, body: Mapping[str, Any]) -> Claims:
        claims = read_claims(body, self._wanted)
        self.num_malformed += claims.num_malformed
        return claims

    def _outcome(self) -> Outcome:
        while self._behind and not self._questions.full:
            key = next(iter(self._behind))
            del self._behind[key]
            topic = self._topics.find(key)
            if topic is None or not topic.behind or topic.turn.asked:
                continue
            turn = topic.turn
            turn.asked = True
            stream_id = None if turn is topic else turn.stream_id
            self._questions.ask_resume(key, (turn.seen or 0) + 1, turn.newest, stream_id)
        outcome = Outcome(self._showing.take(), self._questions.take(), tuple(self._new_gaps))
        self._new_gaps = []
        return outcome
