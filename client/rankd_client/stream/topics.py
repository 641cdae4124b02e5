"""Where a subscriber is in each topic of each stream, and which events wait for an earlier one."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from rankd_client.stream.claims import Key
from rankd_client.wire import Event

MAX_TOPICS = 10_000
"""Topics followed at once; the one that was silent longest is forgotten first. Under 10 MB."""

MAX_WAITING = 10_000
"""Events that wait for an earlier one, all topics together. Those that find no room are asked for again."""

MAX_STREAMS = 8
"""Streams whose places are remembered: one ends when the daemon loses its history or cannot write it."""

Places = dict[str, dict[Key, int]]
"""Stream id → topic → the number up to which everything was yielded or reported lost; the newest stream last."""


@dataclass(slots=True, eq=False)
class Topic:
    """Everything up to number `seen` was yielded or reported lost (None: where to begin is not known yet), up to `told`
    in an earlier life of the subscriber. `newest` is the highest number heard of; `asked`: a resume is under way;
    `former`: the same topic in the stream before, which has to be read to its end first."""

    stream_id: str
    seen: int | None = None
    newest: int = 0
    told: int = 0
    asked: bool = False
    waiting: dict[int, Event] = field(default_factory=dict)
    former: Topic | None = None

    @property
    def behind(self) -> bool:
        return self.former is not None or (self.seen is not None and self.newest > self.seen)

    @property
    def turn(self) -> Topic:
        """The oldest that is not read to its end."""
        return self.chain()[-1]

    def chain(self) -> list[Topic]:
        """This topic, and those that have to be read first: the newest stream's first."""
        topics = [self]
        while (former := topics[-1].former) is not None:
            topics.append(former)
        return topics

    def finish_former(self) -> None:
        """`turn`, which is a former one, was read to its end."""
        self.chain()[-2].former = None


class Topics:
    """A bounded table of topics by stream, one of which is current. `from_one`: a topic not heard of before is followed
    from its number 1; otherwise from the first number heard of."""

    def __init__(self, max_topics: int = MAX_TOPICS, max_waiting: int = MAX_WAITING) -> None:
        self.from_one = False
        self._max_topics, self._max_waiting = max_topics, max_waiting
        self._streams: OrderedDict[str, OrderedDict[Key, Topic]] = OrderedDict()
        self._stream_id = ""
        self._topics: OrderedDict[Key, Topic] = OrderedDict()
        self._before: tuple[str, ...] = ()  # streams in which a topic not heard of may have had its first events
        self._known: set[str] = set()  # streams in which places were given once
        self._laid_out = False  # places were given in the current one
        self._num_waiting = 0

    def __iter__(self) -> Iterator[Key]:
        return iter(tuple(self._topics))

    def restore(self, places: Places, complete: bool) -> None:
        """Where an earlier life of the subscriber was."""
        self.from_one = complete
        for stream_id, numbers in list(places.items())[-MAX_STREAMS:]:
            self._known.add(stream_id)
            self._streams[stream_id] = OrderedDict(
                (key, Topic(stream_id, seen=seq, newest=seq, told=seq)) for key, seq in numbers.items()
            )

    def places(self) -> Places:
        return {
            stream_id: {key: t.seen for key, t in topics.items() if t.seen is not None and t.former is None}
            for stream_id, topics in self._streams.items()
        }

    def begin(self, stream_id: str, keep: bool = True) -> list[str]:
        """Make `stream_id` current, and `keep` the places in the others. Returns the streams that were current since it
        last was, if it ever was."""
        if not keep:
            self._streams.clear()
            self._num_waiting = 0
        former = list(self._streams)
        since = former[former.index(stream_id) + 1 :] if stream_id in former else []
        self._stream_id, self._laid_out, self._before = stream_id, False, ()
        self._topics = self._streams.setdefault(stream_id, OrderedDict())
        self._streams.move_to_end(stream_id)
        while len(self._streams) > MAX_STREAMS:
            forgotten, topics = self._streams.popitem(last=False)
            self._known.discard(forgotten)
            for topic in topics.values():
                self.forget_waiting(topic, topic.newest)
        for topics in self._streams.values():
            for topic in topics.values():
                for one in topic.chain():
                    one.asked = False
        return since

    def lay_out(self, streams: Sequence[str], keys: Iterable[Key]) -> None:
        """Give each topic its place in the current stream, by where it was in the former ones. `streams`: those of the
        daemon's history in their order; empty where it does not say."""
        if self._stream_id not in streams:
            streams = list(self._streams)
        former = [stream_id for stream_id in dict.fromkeys(streams) if stream_id != self._stream_id]
        known = [i for i, stream_id in enumerate(former) if stream_id in self._known]
        self._before = tuple(former[known[0] if known else 0 :])  # of a history that we knew nothing of, all
        self._laid_out = True
        self._known.add(self._stream_id)
        for key in {*keys, *(key for stream_id in self._before for key in self._of(stream_id))}:
            topic = self.get(key)
            if topic.seen is None:
                self._place(key, topic)

    def _place(self, key: Key, topic: Topic) -> None:
        """Behind the newest stream in which it has a place, or from number 1 on."""
        chain = list(self._before)
        for i in range(len(chain) - 1, -1, -1):
            former = self._of(chain[i]).get(key)
            if former is not None and former.seen is not None:
                topic.former, chain = former, chain[i + 1 :]
                break
        else:
            if not self.from_one:
                return
        for stream_id in chain:
            between = self._of(stream_id).setdefault(key, Topic(stream_id))
            between.seen, between.former = 0, topic.former
            topic.former = between
        topic.seen = 0

    def find(self, key: Key, stream_id: str | None = None) -> Topic | None:
        """The topic in the current stream or in `stream_id`."""
        return (self._topics if stream_id is None else self._of(stream_id)).get(key)

    def _of(self, stream_id: str) -> OrderedDict[Key, Topic]:
        """Its topics; of a stream that is not remembered, none that would be kept."""
        return self._streams.get(stream_id, OrderedDict())

    def get(self, key: Key) -> Topic:
        topic = self._topics.get(key)
        if topic is None:
            topic = self._topics[key] = Topic(self._stream_id)
            if self._laid_out:
                self._place(key, topic)
            if len(self._topics) > self._max_topics:
                for dropped in self._topics.popitem(last=False)[1].chain():
                    self.forget_waiting(dropped, dropped.newest)
                self.from_one, self._before = False, ()  # one that comes back is not to be read from its beginning
        self._topics.move_to_end(key)
        return topic

    def join(self, numbers: Mapping[Key, int], complete: bool) -> None:
        """The first places of all: each topic begins behind its number, or at the first event that came before the
        numbers did, whichever is less. Not `complete`: there are topics that `numbers` lacks."""
        for key in {*self._topics, *numbers}:
            topic = self.get(key)
            first = min(topic.waiting, default=None)
            if first is not None:
                topic.seen = min(first - 1, numbers.get(key, 0 if complete else first - 1))
            else:
                topic.seen = numbers.get(key, 0 if complete else None)
        self.from_one = complete
        self.lay_out((), ())

    def wait(self, topic: Topic, event: Event) -> None:
        if self._num_waiting < self._max_waiting and event.seq not in topic.waiting:
            topic.waiting[event.seq] = event
            self._num_waiting += 1

    def next_event(self, topic: Topic) -> Event | None:
        """The event whose turn it is, if it is there; the topic moves on by it."""
        if topic.seen is None or topic.former or (event := topic.waiting.pop(topic.seen + 1, None)) is None:
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
