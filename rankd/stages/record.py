"""Numbers each measurement with its alerts, has them written, and says what may be published and acknowledged."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from rankd.current import Current
from rankd.records import Alert, LayerStep, Measurement
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.writer import Writer
from rankd.streams import Streams, Topic
from rankd_client.wire import Event

log = logging.getLogger("rankd.record")

MAX_UNWRITTEN = 1000
"""With more than these waiting, the history has not caught up yet: they are to be in one commit with the new stream."""

Word = Literal["recorded", "superseded"]


@dataclass(slots=True)
class Outcome:
    """Events to publish, and snapshots of which the trainers may hear what became of them; each in order."""

    events: list[Event] = field(default_factory=list)
    settled: list[tuple[LayerStep, Word]] = field(default_factory=list)


class Record:
    """*Attached* to the history, an event is published once it is committed. *Detached* (no history, or one that fails
    or is slow) it is published at once, in a stream of its own; what was measured is acknowledged when it could be
    written after all. Without a history there is nothing to wait for.

    `on_fault` hears of trouble with the history, and None when it is over. All methods belong to the event loop.
    """

    def __init__(
        self,
        streams: Streams,
        current: Current,
        counters: Counter[str],
        writer: Writer | None = None,
        patience_seconds: float = 5.0,
        on_fault: Callable[[str | None], None] = lambda text: None,
    ) -> None:
        self.streams = streams
        self.current = current
        self.counters = counters
        self.writer = writer
        self.attached = writer is not None
        self._patience_seconds = patience_seconds
        self._on_fault = on_fault
        self._failing = False
        self._bases: Mapping[Topic, int] = {}
        self._unpublished: deque[Entry | AlertEntry] = deque()
        self._outcome = Outcome()
        self._ready = asyncio.Event()

    def __call__(self, measurement: Measurement, alerts: Iterable[Alert], judge: bytes | None = None) -> None:
        """Take a measurement, its alerts, and what its layer's detectors remember now, if that is due."""
        self.together([(measurement, alerts, judge)])

    def together(self, rows: Sequence[tuple[Measurement, Iterable[Alert], bytes | None]]) -> None:
        """The same of all measurements that came of one snapshot: the history has them all, or none."""
        self.counters["num_measurements"] += len(rows)
        entries = []
        for place, (measurement, alerts, judge) in enumerate(rows, 1):
            n = self.streams.next_n(("measurement", measurement.run))
            numbered = tuple(self._numbered(alert) for alert in alerts)
            entries.append(Entry(n, measurement, numbered, judge, more=place < len(rows)))
        self._take(*entries)

    def alert(self, alert: Alert) -> None:
        """Take an alert that no measurement brought."""
        n, alert = self._numbered(alert)
        self._take(AlertEntry(n, alert))

    def superseded(self, run: str, layer: str, role: str) -> None:
        """A snapshot of this layer gave way to another: its coverage."""
        if self.writer is not None:
            self.writer.superseded(run, layer, role)

    async def next(self) -> Outcome:
        """What has become ready since the last call; waits for something."""
        await self._ready.wait()
        return self.take_outcome()

    def take_outcome(self) -> Outcome:
        """What is ready now, maybe nothing."""
        self._ready.clear()
        outcome, self._outcome = self._outcome, Outcome()
        return outcome

    def committed(self, entries: Iterable[Entry | AlertEntry]) -> None:
        """The history has them."""
        for entry in entries:
            if self._unpublished and self._unpublished[0] is entry:
                self._publish(self._unpublished.popleft())
            self._settle(entry, "recorded")

    def fault(self, error: StoreError | None) -> None:
        """The history fails, or has taken all that waited."""
        self._failing = error is not None
        if error is not None:
            self._detach(str(error))
        else:
            self._attach()

    def watch(self) -> None:
        """To be called about once a second: a history that is too slow is as good as none."""
        if self.writer is None:
            return
        waited_seconds = self.writer.oldest_pending_seconds()
        if waited_seconds > self._patience_seconds:
            self._detach(f"a commit takes longer than {self._patience_seconds:g} s")
        elif (
            waited_seconds < self._patience_seconds / 5
            and not self._failing
            and self.writer.num_pending < MAX_UNWRITTEN
        ):
            self._attach()

    @property
    def num_pending(self) -> int:
        """Measurements that are not on disk yet."""
        return 0 if self.writer is None else self.writer.num_pending

    def _numbered(self, alert: Alert) -> tuple[int, Alert]:
        self.counters["num_alerts"] += 1
        return self.streams.next_n(("alert", alert.run)), alert

    def _take(self, *entries: Entry | AlertEntry) -> None:
        for entry in entries:
            if self.attached:
                self._unpublished.append(entry)
            else:
                self._publish(entry)
            if self.writer is None:
                self._settle(entry, "recorded")
        if self.writer is None:
            return
        for dropped in self.writer.submit(*entries):
            self.counters["dropped_rows"] += 1
            if self.attached:
                self._detach("it cannot keep up")
            self._settle(dropped, "superseded")

    def _attach(self) -> None:
        """From now on events wait for the disk again. Only now may the new stream be stored: with the commit that holds
        the last of what was told in it beforehand. A crash until then leads back to the former stream."""
        if self.attached or self.writer is None:
            return
        self.attached = True
        self.writer.switch_stream(self.streams.stream_id, self._bases)
        log.info("alerts wait for the history again")
        self._on_fault(None)

    def _detach(self, why: str) -> None:
        """Go on without the history: everything that waited for it is published now."""
        if not self.attached or self.writer is None:
            return
        self.attached = False
        log.error("the history cannot be written: %s; alerts go on without it", why)
        self._bases = self.streams.switch(secrets.token_hex(8))
        self.current.begin_stream()
        while self._unpublished:
            self._publish(self._unpublished.popleft())
        self._on_fault(why)

    def _publish(self, entry: Entry | AlertEntry) -> None:
        if isinstance(entry, Entry):
            self._outcome.events.append(self.current.measured(entry.measurement, entry.n))
            alerts = entry.alerts
        else:
            alerts = ((entry.n, entry.alert),)
        self._outcome.events += [self.current.raised(alert, n) for n, alert in alerts]
        self._ready.set()

    def _settle(self, entry: Entry | AlertEntry, word: Word) -> None:
        """The last row of a snapshot has its name; one before it may have that of a snapshot yet to be measured."""
        if isinstance(entry, Entry) and not entry.more and entry.measurement.step is not None:
            taken = entry.measurement
            self._outcome.settled.append(((taken.run, taken.layer, taken.role, entry.measurement.step), word))
            self._ready.set()
