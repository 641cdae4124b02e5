"""What the query endpoint answers: from memory what is there, from the history what is older."""

from __future__ import annotations

from collections import Counter
from typing import Any

from rankd.archive import Archive
from rankd.auth import Grant
from rankd.current import Current
from rankd_client.wire import Event

MAX_RESUME_EVENTS = 1000

MAX_FROM_SEQ = 1 << 62
"""More than were ever published, and sums with it stay within SQLite's 64 bits."""

MAX_STREAMS = 100
"""Told in a state: each that a subscriber did not hear of costs it a query for every topic."""


class Answers:
    def __init__(self, current: Current, counters: Counter[str], archive: Archive | None = None) -> None:
        self.current = current
        self.counters = counters
        self.archive = archive

    @property
    def stream_id(self) -> str:
        return self.current.streams.stream_id

    def state(self, run: str | None, grant: Grant) -> dict[str, Any]:
        """What a late joiner needs, as far as `grant` covers it. The counters are of all, hence only for admins."""
        state = self.current.state(run, grant.covers)
        state |= {"streams": self._streams(), "namespace": None if grant.may("admin") else grant.namespace}
        return {**state, "counters": dict(self.counters)} if grant.may("admin") else state

    def _streams(self) -> list[str]:
        """The newest streams of the history in their order, the current one last, which may not be on disk."""
        stored = [] if self.archive is None else self.archive.streams()[-MAX_STREAMS:]
        return [*(stream_id for stream_id in stored if stream_id != self.stream_id), self.stream_id]

    def since(self, kind: str, run: str, from_seq: int, stream_id: str | None) -> tuple[list[Event], int, int]:
        """At most MAX_RESUME_EVENTS events from number `from_seq` on, the oldest number there is, the newest one."""
        from_seq = min(max(1, from_seq), MAX_FROM_SEQ)
        if stream_id not in (None, self.stream_id):
            return self._since_of_former(kind, run, from_seq, str(stream_id))
        last = self.current.streams.newest_seq((kind, run))
        recent = self.current.recent[kind]
        first = recent.first(run)
        if first is not None and from_seq >= first:
            return recent.since(run, from_seq, MAX_RESUME_EVENTS), self._oldest(kind, run, first), last
        events = []
        if self.archive is not None:
            events = self.archive.events((kind, run), self.stream_id, from_seq, MAX_RESUME_EVENTS)
        events = [event for event in events if event.seq <= last]
        if not events:
            events = recent.since(run, from_seq, MAX_RESUME_EVENTS)
        return events, self._oldest(kind, run, events[0].seq if events else last + 1), last

    def _oldest(self, kind: str, run: str, known: int) -> int:
        span = None if self.archive is None else self.archive.span((kind, run), self.stream_id)
        return known if span is None else min(span[0], known)

    def _since_of_former(self, kind: str, run: str, from_seq: int, stream_id: str) -> tuple[list[Event], int, int]:
        ended_n = self.current.streams.base((kind, run))
        first, last = (self.archive and self.archive.span((kind, run), stream_id, ended_n)) or (1, None)
        if self.archive is None or last is None:
            return [], 1, 0
        events = self.archive.events((kind, run), stream_id, from_seq, MAX_RESUME_EVENTS)
        events = [event for event in events if event.seq <= last]  # one written late was told in the next stream
        return events, events[0].seq if events and from_seq < first else min(first, last + 1), last
