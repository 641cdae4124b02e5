"""Where a subscriber is in each topic, and which events wait for an earlier one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from rankd_client.stream.claims import Key
from rankd_client.wire import Event

MAX_TOPICS = 10_000
"""Topics followed at once; the one that was silent longest is forgotten first. Under 10 MB."""

MAX_WAITING = 10_000
"""Events that wait for an earlier one, all topics together. Those that find no room are asked for again."""


@dataclass(slots=True)
class Topic:
    """Everything up to number `seen` was yielded or reported lost (None: where to begin is not known yet). `newest` is
    the highest number heard of; `asked`: a resume is under way."""

    seen: int | None = None
    newest: int = 0
    asked: bool = False
    waiting: dict[int, Event] = field(default_factory=dict)

    @property
    def behind(self) -> bool:
        return self.seen is not None and self.newest > self.seen


class Topics:
    """A bounded table of topics. `from_one`: a topic not heard of before is followed from its number 1; otherwise from
    the first number heard of."""

    def __init__(self, max_topics: int = MAX_TOPICS, max_waiting: int = MAX_WAITING) -> None:
        self.from_one = False
        self._max_topics, self._max_waiting = max_topics, max_waiting
        self._topics: OrderedDict[Key, Topic] = OrderedDict()
        self._num_waiting = 0

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._topics))

    def find(self, key: Key) -> Topic | None:
        return self._topics.get(key)

    def get(self, key: Key) -> Topic:
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(seen=0 if self.from_one else None)
            if len(self._topics) > self._max_topics:
                self._num_waiting -= len(self._topics.popitem(last=False)[1].waiting)
                self.from_one = False  # one that comes back is not to be read from its beginning
        self._topics.move_to_end(key)
        return topic

    def clear(self) -> None:
        self._topics.clear()
        self._num_waiting = 0

    def wait(self, topic: Topic, event: Event) -> None:
        if self._num_waiting < self._max_waiting and event.seq not in topic.waiting:
            topic.waiting[event.seq] = event
            self._num_waiting += 1

    def next_event(self, topic: Topic) -> Event | None:
        """The event whose turn it is, if it is there; the topic moves on by it."""
        if topic.seen is None or (event := topic.waiting.pop(topic.seen + 1, None)) is None:
            return None
        self._num_waiting -= 1
        topic.seen += 1
        return event

    def advance(self, topic: Topic, events: Mapping[int, Event], through: int) -> list[Event | tuple[int, int]]:
        """Move on to number `through` with what waits and with `events`: the events in order, and in their places the
        (first, last) of what is in neither. Takes time by events, not by numbers, which may be anything."""
        seen = topic.seen or 0
        have = {seq: event for seq, event in {**topic.waiting, **events}.items() if seen < seq <= through}
        passed: list[Event | tuple[int, int]] = []
        for seq in sorted(have):
            if seq > seen + 1:
                passed.append((seen + 1, seq - 1))
            passed.append(have[seq])
            seen = seq
        if seen < through:
            passed.append((seen + 1, through))
        topic.seen = max(seen, through)
        self.forget_waiting(topic, topic.seen)
        return passed

    def forget_waiting(self, topic: Topic, through: int) -> None:
        late = {seq: event for seq, event in topic.waiting.items() if seq > through}
        self._num_waiting -= len(topic.waiting) - len(late)
        topic.waiting = late
