"""What the query endpoint answers: from memory what is there, from the history what is older."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from rankd.archive import Archive
from rankd.auth import Grant
from rankd.current import Current
from rankd.reading import Reading
from rankd.store.batch import KEPT_STREAMS
from rankd.store.errors import StoreError
from rankd.streams import Topic
from rankd_client.wire import Event, WireError

T = TypeVar("T")

MAX_RESUME_EVENTS = 1000

MAX_FROM_SEQ = 1 << 62
"""More than were ever published, and sums with it stay within SQLite's 64 bits."""


class Answers:
    """Raises WireError (unavailable) where the history would have the answer and cannot be read just now: who is told
    of nothing takes it for lost, who is refused asks again. What memory holds is answered even so."""

    def __init__(
        self,
        current: Current,
        counters: Counter[str],
        reading: Reading | None = None,
        plan: Callable[[], dict[str, Any]] = dict,
        trainers: Callable[[], list[dict[str, Any]]] = list,
        capacity: Callable[[Callable[[str], bool]], dict[str, Any]] = lambda covers: {},
    ) -> None:
        """`plan`: what is measured and how far behind, as `rankd.plan` describes it. `trainers`: what pushing costs, as
        `rankd.trainers` sums it up. `capacity`: of the runs that somebody may see, as `rankd.capacity` describes it."""
        self.current = current
        self.counters = counters
        self.reading = reading
        self.plan = plan
        self.trainers = trainers
        self.capacity = capacity

    @property
    def stream_id(self) -> str:
        return self.current.streams.stream_id

    async def state(self, run: str | None, grant: Grant) -> dict[str, Any]:
        """What a late joiner needs, and how measuring keeps up, as far as `grant` covers it. Counters, plan and
        trainers are of all, hence only for admins."""
        namespace = None if grant.may("admin") else grant.namespace
        streams = await self._streams()
        state = {**self.current.state(run, grant.covers), "namespace": namespace, **streams}
        state["capacity"] = self.capacity(grant.covers)
        if not grant.may("admin"):
            return state
        return {**state, "counters": dict(self.counters), "plan": self.plan(), "trainers": self.trainers()}

    async def _streams(self) -> dict[str, list[str]]:
        """The newest streams of the history in their order, the current one last, which may not be on disk. Who joins
        while that cannot be read is not told, rather than that there are no others."""
        try:
            stored = await self._read(Archive.streams) or []
        except WireError:
            return {}
        former = [stream_id for stream_id in stored[-KEPT_STREAMS:] if stream_id != self.stream_id]
        return {"streams": [*former, self.stream_id]}

    async def since(self, kind: str, run: str, from_seq: int, stream_id: str | None) -> tuple[list[Event], int, int]:
        """At most MAX_RESUME_EVENTS events from number `from_seq` on, the oldest number there is, the newest one."""
        topic, from_seq = (kind, run), min(max(1, from_seq), MAX_FROM_SEQ)
        if stream_id not in (None, self.stream_id):
            return await self._since_of_former(topic, from_seq, str(stream_id))
        # All that memory knows is of this moment: the stream may end while the disk is read.
        current, last = self.stream_id, self.current.streams.newest_seq(topic)
        recent = self.current.recent[kind]
        events, first = recent.since(run, from_seq, MAX_RESUME_EVENTS), recent.first(run)
        if first is not None and from_seq >= first:
            return events, await self._oldest(topic, current, first), last
        stored = await self._read(lambda archive: archive.events(topic, current, from_seq, MAX_RESUME_EVENTS)) or []
        events = [event for event in stored if event.seq <= last] or events
        return events, await self._oldest(topic, current, events[0].seq if events else last + 1), last

    async def _oldest(self, topic: Topic, stream_id: str, known: int) -> int:
        """The oldest number that the daemon holds; where only memory can be asked, the oldest there, `known`."""
        try:
            span = await self._read(lambda archive: archive.span(topic, stream_id))
        except WireError:
            span = None
        return known if span is None else min(span[0], known)

    async def _since_of_former(self, topic: Topic, from_seq: int, stream_id: str) -> tuple[list[Event], int, int]:
        ended_n = self.current.streams.base(topic)
        span = await self._read(lambda archive: archive.span(topic, stream_id, ended_n))
        first, last = span or (1, None)
        if last is None:
            return [], 1, 0
        events = await self._read(lambda archive: archive.events(topic, stream_id, from_seq, MAX_RESUME_EVENTS)) or []
        events = [event for event in events if event.seq <= last]  # one written late was told in the next stream
        return events, events[0].seq if events and from_seq < first else min(first, last + 1), last

    async def _read(self, question: Callable[[Archive], T]) -> T | None:
        """None where there is no history."""
        try:
            return None if self.reading is None else await self.reading.ask(question)
        except StoreError as error:
            raise WireError("unavailable", f"the history cannot be read: {error}") from None
