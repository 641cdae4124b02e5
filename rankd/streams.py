"""The numbers of what is published: n counts what a run ever had, seq what a stream told of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Topic = tuple[str, str]
"""(kind, run), kind "measurement" or "alert"."""


class Streams:
    """One stream at a time, and where each topic began in it: seq = n − base.

    A stream outlives the daemon together with its history. It ends where the history is lost or cannot be written: what
    is told then is not on disk, and numbers that a crash would give out a second time must be those of another stream.
    """

    def __init__(self, stream_id: str) -> None:
        self.stream_id = stream_id
        self._newest: dict[Topic, int] = {}
        self._told: dict[Topic, int] = {}
        self._bases: dict[Topic, int] = {}

    def load(self, topic: Topic, newest: int, base: int) -> None:
        """What the history says of a topic."""
        self._newest[topic] = self._told[topic] = newest
        self._bases[topic] = base

    def next_n(self, topic: Topic) -> int:
        """The number of the topic's next event, in the run's own count from 1."""
        number = self._newest[topic] = self._newest.get(topic, 0) + 1
        return number

    def tell(self, topic: Topic, n: int) -> None:
        """Event n is being published. Until then it has a number and nobody may hear of it: who heard that 7 is the
        newest takes a 7 that comes later for a repeat."""
        self._told[topic] = n

    def base(self, topic: Topic) -> int:
        return self._bases.get(topic, 0)

    def seq(self, topic: Topic, n: int) -> int:
        return n - self.base(topic)

    def newest_seq(self, topic: Topic) -> int:
        """Of what was published."""
        return self.seq(topic, self._told.get(topic, self.base(topic)))

    def topics(self) -> Iterator[Topic]:
        """All that have a number in this stream or a former one, those heard of last first."""
        return (topic for topic in reversed(self._told) if self._told[topic] > 0)

    def switch(self, stream_id: str) -> Mapping[Topic, int]:
        """Begin another stream with what was not published yet. Returns the bases: where every topic begins in it."""
        self.stream_id, self._bases = stream_id, dict(self._told)
        return dict(self._bases)
