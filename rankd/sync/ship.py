"""One job's snapshots on their way to a daemon: of each layer one at a time, different layers side by side."""

from __future__ import annotations

import heapq
import queue
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from rankd.sync.cargo import Cargo, Outcome
from rankd.sync.found import Found, Life
from rankd.sync.index import Index, Key, Order, Place
from rankd.sync.join import Part, are_whole, joined
from rankd.sync.progress import DAMAGED, INCOMPLETE
from rankd_client.keys import Key as ClientKey
from rankd_client.link import Link
from rankd_client.spool.format import SpoolError
from rankd_client.wire import Hello, Reported

MAX_UNDER_WAY_BYTES = 256 << 20
"""A quarter of what a daemon lets wait for measuring, so that nothing has to give way to anything; one larger matrix
goes alone."""

MAX_UNDER_WAY = 256
"""Snapshots, for the same reason: a history that is slow to write has that many to acknowledge at once."""

MAX_MATRIX_BYTES = 4 << 30
"""A spool may claim anything. Daemons take less: 1 GiB unless configured."""

LOST_SECONDS = 60.0
"""Daemons answer without waiting, and an answer may be lost. After this long without any, all that is under way goes
again over a new connection: what the daemon has, it knows, and what it is measuring, it goes on with."""

_LOOK_SECONDS = 0.2

_MARKS = {"num_damaged": DAMAGED, "num_incomplete": INCOMPLETE}


class Unreachable(Exception):
    """No daemon has taken us in for as long as there is patience."""


@dataclass(slots=True)
class Tally:
    """What became of one session's records. Of those dealt with before, `num_before`; `num_left` stay for later."""

    found: Found
    num_before: int = 0
    num_shipped: int = 0
    num_superseded: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    num_repeats: int = 0
    """Sent again, because an answer was lost with the connection."""
    num_incomplete: int = 0
    num_damaged: int = 0
    num_thinned: int = 0
    """Removed meanwhile by a trainer that wants room."""
    num_left: int = 0
    num_bytes: int = 0

    @property
    def is_over(self) -> bool:
        """Whether nothing of it can be shipped any more, now or later."""
        return not (self.found.live or self.num_left or self.num_incomplete or self.num_damaged)

    def to_json(self) -> dict[str, Any]:
        hello = self.found.origin.hello
        return {
            "run": hello.run,
            "session": hello.session.hex(),
            "process_rank": hello.process_rank,
            "world_size": hello.world_size,
            "live": self.found.live,
            "num_shipped": self.num_shipped,
            "num_repeats": self.num_repeats,
            "num_before": self.num_before,
            "num_superseded": self.num_superseded,
            "num_refused": self.refused.total(),
            "num_incomplete": self.num_incomplete,
            "num_damaged": self.num_damaged,
            "num_thinned": self.num_thinned,
            "num_left": self.num_left,
            "bytes": self.num_bytes,
        }


@dataclass(slots=True)
class _Step:
    """The next of a layer, and those behind it."""

    key: Key
    order: Order
    places: list[Place]
    rest: Iterator[tuple[Order, list[Place]]]
    num_bytes: int = 0


class Shipment:
    """Of one life. `tell` is called with a line for a person; `watch` again and again while it goes on."""

    def __init__(
        self,
        life: Life,
        address: str,
        key: ClientKey | None = None,
        patience_seconds: float = 30.0,
        tell: Callable[[str], None] = lambda line: None,
        watch: Callable[[int, int], None] = lambda num_done, num_all: None,
    ) -> None:
        """Reads what there is. Raises SpoolError where what was shipped before cannot be told."""
        self.index = Index(life)
        self.tallies = [
            Tally(found, lines.num_done, num_left=lines.num_left, num_incomplete=lines.num_incomplete)
            for found, lines in zip(life, self.index.lines, strict=True)
        ]
        self._tell = tell
        self._watch = watch
        self._patience_seconds = patience_seconds
        self._cargo = Cargo()
        self._hello = self._introduce(life[0].origin.hello)
        self._address, self._key = address, key
        self._ready: list[tuple[Order, int, int, _Step]] = []
        self._turn = count()
        self._under_way: dict[tuple[Key, int], _Step] = {}
        self._under_way_bytes = 0
        self._num_all = sum(tally.num_left for tally in self.tallies)
        for tally, lines in zip(self.tallies, self.index.lines, strict=True):
            tally.num_damaged = len(lines.faults)
            for fault in lines.faults:
                tell(str(fault))

    def run(self) -> None:
        """Ship all that can be. Raises Unreachable, and OSError where what was shipped cannot be written down."""
        try:
            for key in sorted(self.index.keys()):
                self._advance(key, self.index.steps(key))
            if self._ready:
                self._ship()
        finally:
            self.index.close()

    def _introduce(self, hello: Hello) -> Hello:
        """As the process that wrote the first of these sessions: a sync that was killed comes back as the same one."""
        agent = "rankd sync"
        return Hello(hello.run, hello.session, self.index.version, agent, hello.process_rank, hello.world_size)

    def _new_link(self) -> Link:
        """To be started. Alerts are for trainers."""
        return Link(self._address, self._hello, self._cargo, lambda alert: None, self._key)

    def _ship(self) -> None:
        link = self._new_link()
        link.start()
        there_at = answered_at = time.monotonic()
        try:
            while self._ready or self._under_way:
                if self._load():
                    link.wake()
                if not self._under_way:
                    break  # parts were missing of all that was left
                is_answered, now = self._collect(), time.monotonic()
                answered_at = now if is_answered or not link.connected else answered_at
                there_at = now if is_answered or link.connected else there_at
                if now - there_at > self._patience_seconds:
                    raise Unreachable
                if now - answered_at > LOST_SECONDS:
                    _end(link)
                    link, answered_at = self._new_link(), now
                    link.start()
        finally:
            _end(link, 0.0 if self._under_way else 2.0)

    def _advance(self, key: Key, rest: Iterator[tuple[Order, list[Place]]]) -> None:
        """The next step of a layer waits for its turn: of all layers the earliest step goes first."""
        if (following := next(rest, None)) is not None:
            order, places = following
            step = _Step(key, order, places, rest)
            heapq.heappush(self._ready, (order, min(place.number for place in places), next(self._turn), step))

    def _load(self) -> bool:
        """Put as much on its way as there may be; whether there was anything."""
        num_before = len(self._under_way)
        while self._ready and len(self._under_way) < MAX_UNDER_WAY and self._under_way_bytes < MAX_UNDER_WAY_BYTES:
            step = heapq.heappop(self._ready)[-1]
            try:
                part = self._read(step)
            except SpoolError as error:
                paths = [self.index.logs.path(place.session, place.thinning_class) for place in step.places]
                if all(path.exists() for path in paths):
                    self._tell(str(error))
                    self._count(step, "num_damaged")
                else:
                    self._count(step, "num_thinned")
                self._advance(step.key, step.rest)
                continue
            if part is None:
                continue
            self._under_way[step.key, step.order[1]] = step
            if isinstance(part, Reported):
                step.num_bytes = part.num_bytes
                self._cargo.put_numbers(part)
            else:
                step.num_bytes = len(part[1])
                self._cargo.put(*part)
            self._under_way_bytes += step.num_bytes
        self._flush()  # what was left out is known before anything behind it counts as dealt with
        return len(self._under_way) > num_before

    def _read(self, step: _Step) -> Part | Reported | None:
        """The whole matrix, or numbers; None where parts are missing, which is counted. Raises SpoolError."""
        found = [self.index.logs.record(place) for place in step.places]
        chunks = []
        for log, record in found:
            message = log.message(record)
            if isinstance(message, Reported):
                return message
            chunks.append(message)
        if not are_whole(chunks):
            if not self.index.may_come(step.key, step.order, step.places):
                self._count(step, "num_incomplete")
                self._advance(step.key, step.rest)
            return None
        if sum(record.body_bytes for _, record in found) > MAX_MATRIX_BYTES:
            log, record = found[0]
            raise SpoolError(log.path, f"a matrix of more than {MAX_MATRIX_BYTES} bytes", record.at)
        return joined([(chunk, log.body(record)) for chunk, (log, record) in zip(chunks, found, strict=True)])

    def _collect(self) -> bool:
        """Wait a little for answers, and deal with all that are there; whether there were any."""
        outcomes: list[Outcome] = []
        try:
            outcomes.append(self._cargo.outcomes.get(timeout=_LOOK_SECONDS))
            while True:
                outcomes.append(self._cargo.outcomes.get_nowait())
        except queue.Empty:
            pass
        dealt_with = []
        for outcome in outcomes:
            if (step := self._under_way.pop((outcome.key, outcome.step), None)) is not None:
                self._under_way_bytes -= step.num_bytes
                dealt_with.append((step, outcome))
        self._mark([place for step, _ in dealt_with for place in step.places])
        for step, outcome in dealt_with:  # only now: what was dealt with is on the disk
            self._settle(step, outcome)
            self._advance(step.key, step.rest)
        self._watch(self._num_all - sum(tally.num_left for tally in self.tallies), self._num_all)
        return bool(outcomes)

    def _mark(self, places: list[Place]) -> None:
        for session, progress in enumerate(self.index.progress):
            if numbers := [place.number for place in places if place.session == session]:
                progress.mark(numbers)
        self._flush()

    def _flush(self) -> None:
        for progress in self.index.progress:
            progress.flush()

    def _settle(self, step: _Step, outcome: Outcome) -> None:
        for place in step.places:
            tally = self.tallies[place.session]
            tally.num_left -= 1
            tally.num_repeats += outcome.num_again
            if outcome.word == "recorded":
                tally.num_shipped += 1
            elif outcome.word == "superseded":
                tally.num_superseded += 1
            else:
                tally.refused[outcome.word] += 1
        self.tallies[step.places[0].session].num_bytes += step.num_bytes

    def _count(self, step: _Step, what: str) -> None:
        for place in step.places:
            tally = self.tallies[place.session]
            tally.num_left -= 1
            setattr(tally, what, getattr(tally, what) + 1)
            if what in _MARKS:
                self.index.progress[place.session].mark([place.number], _MARKS[what])


def _end(link: Link, seconds: float = 0.0) -> None:
    link.stop(seconds)
    link.join(seconds + 3.0)
