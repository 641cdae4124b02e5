"""The one queue between intake and analysis: bounded in bytes, newest wins per layer, fair to namespaces and runs
(docs/decisions/0014-capacity.md)."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from typing import NamedTuple

from rankd.lines import Key, Line
from rankd.namespaces import namespace_of
from rankd.parts import split
from rankd.plan.window import Window
from rankd.quota import NO_QUOTA, Quota, Tally
from rankd.records import Snapshot
from rankd.timeshare import Fair

LONG_WORK = 1 << 31
"""rows × cols × min(rows, cols), of all experts together, above which a measurement is long: a second or so on one
core, and it cannot be interrupted."""


MAX_MEASURING_BYTES = 1 << 30
"""Of large snapshots that are handed out together for each GPU or thread; a larger one goes alone among them. A GPU has
many slots, for batches of small matrices; each might hold one of the largest."""

SMALL_BYTES = 32 << 20
"""Up to here they neither count nor wait for room: 32 slots of them hold as much as the large ones may."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A snapshot that will not be measured; `by_step` is the step that took its place, None for want of room."""

    snapshot: Snapshot
    by_step: int | None


class Queue(NamedTuple):
    """What waits of a run, and what became of the rest."""

    num_waiting: int
    num_bytes: int
    lag_seconds: float
    seconds: float
    """Of measuring that it got in each second, over the last minutes."""
    num_superseded: int
    num_dropped: int
    num_measured: int


class _Turn(NamedTuple):
    """A snapshot that is handed out: since when its layer waited, when it was, and for how long that was expected."""

    since: float
    began: float
    expected: float


class Mailbox:
    """Holds at most `max_bytes` of snapshots, whoever pushes how fast, and hands out `num_slots` at a time.

    Four promises: a newer snapshot of a layer takes the place in line of the older one; namespaces that wait get equal
    shares of the time, in each its runs, in a run the layer that was measured longest ago comes first, and one being
    measured is passed over, not waited for; while others are `connected`, the last free slot is not for a long
    measurement of who has one under way; a notice (a snapshot known to be non-finite or all-zero, which carries no
    bytes) needs no slot, goes first and is never displaced.
    """

    def __init__(
        self,
        max_bytes: int,
        num_slots: int,
        counters: Counter[str],
        quota: Callable[[str], Quota] = lambda namespace: NO_QUOTA,
        connected: Callable[[], Set[str]] = frozenset,
        clock: Callable[[], float] = time.monotonic,
        num_workers: int = 1,
    ) -> None:
        """`connected`: the runs whose trainers are there. `clock`: seconds. `num_workers`: GPUs or threads that work at
        what is handed out; that of all of them is no more than may wait either, but for one's."""
        self.max_bytes = max_bytes
        self.num_slots = num_slots
        self._max_measuring_bytes = max(MAX_MEASURING_BYTES, min(num_workers * MAX_MEASURING_BYTES, max_bytes))
        self.counters = counters
        self.num_done = 0
        """Snapshots that were handed out and are dealt with."""
        self._quota = quota
        self._connected = connected
        self._clock = clock
        self._notices: dict[tuple[Key, bool], Snapshot] = {}
        self._lines: dict[str, Line] = {}
        """Of all runs that are remembered; those of them where something waits are, by namespace, in `_waiting` too."""
        self._waiting: dict[str, dict[str, Line]] = {}
        self._fair = Fair()
        self._window = Window(clock())
        self._bytes = Tally()
        self._measuring: dict[Key, _Turn] = {}
        self._num_turns = 0
        self._large_bytes = 0
        """Of large snapshots that are handed out."""
        self._held: Key | None = None
        """The large one that waits for room, which no other large one takes before it."""
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._notices) + sum(len(line) for lines in self._waiting.values() for line in lines.values())

    @property
    def num_bytes(self) -> int:
        return self._bytes.total

    @property
    def num_unfinished(self) -> int:
        """Snapshots that wait or are being measured."""
        return len(self) + len(self._measuring)

    @property
    def lag_seconds(self) -> float:
        """How far measuring is behind pushing: since when the layer that has waited longest is waiting or, at last,
        being measured. A newer snapshot does not shorten it: it takes the older one's place, and is no newer news."""
        waiting = [line.since for lines in self._waiting.values() for line in lines.values()]
        began = [since for since in (*waiting, *(turn.since for turn in self._measuring.values())) if since is not None]
        now = self._clock()
        return now - min(began, default=now)

    def queues(self) -> dict[str, Queue]:
        """By run, of all that are remembered."""
        now = self._clock()
        shares = self._window.shares(now)
        since = {run: now if line.since is None else line.since for run, line in self._lines.items()}
        for (run, _, _), turn in self._measuring.items():
            since[run] = min(since[run], turn.since)
        return {
            run: Queue(
                len(line), line.num_bytes, now - since[run], shares.get(run, 0.0),
                line.num_superseded, line.num_dropped, line.num_measured,
            )
            for run, line in self._lines.items()
        }  # fmt: skip

    def put(self, snapshot: Snapshot) -> list[Superseded]:
        """Take `snapshot`; returns those that it displaced (or itself, where the same notice waits already)."""
        self._changed.set()
        if snapshot.noticed:
            first = self._notices.setdefault((snapshot.key, snapshot.zero), snapshot)
            return [] if first is snapshot else [Superseded(snapshot, first.step)]
        if (line := self._lines.get(snapshot.run)) is None:
            line = self._lines[snapshot.run] = Line(snapshot.run)
        if not len(line):
            self._fair.begin(line.run, self._waiting)
            self._waiting.setdefault(line.namespace, {})[line.run] = line
        older = line.put(snapshot, self._clock())
        self._bytes.add(snapshot.run, snapshot.data.nbytes)
        displaced = []
        if older is not None:
            self._bytes.add(older.run, -older.data.nbytes)
            self.counters["dropped_superseded"] += 1
            displaced.append(Superseded(older, snapshot.step))
        return displaced + self._make_room(snapshot.key)

    async def get(self) -> Snapshot | None:
        """The next snapshot to measure, waiting for one; None when closed and empty. Call `done` with it afterwards."""
        while (snapshot := self._next()) is None:
            if self._closed and not len(self):
                return None
            self._changed.clear()
            await self._changed.wait()
        return snapshot

    def done(self, snapshot: Snapshot, seconds: float | None = None) -> None:
        """The measurement of `snapshot` is over: the layer's next one may start. `seconds`: how long it kept a device
        or a core; None: as long as it was handed out."""
        self.num_done += 1
        if not snapshot.noticed and (turn := self._measuring.pop(snapshot.key, None)) is not None:
            self._large_bytes -= _large_bytes(snapshot)
            now = self._clock()
            self._account(snapshot.key, turn, now - turn.began if seconds is None else seconds, now)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will be put; `get` hands out what is left and then None."""
        self._closed = True
        self._changed.set()

    def forget(self, run: str) -> None:
        """Of which nothing waits, and nothing is being measured."""
        if (line := self._lines.get(run)) is None or len(line) or any(key[0] == run for key in self._measuring):
            return
        del self._lines[run]
        self._fair.forget(run)

    def _next(self) -> Snapshot | None:
        if self._notices:
            return self._notices.pop(next(iter(self._notices)))
        num_free = self.num_slots - len(self._measuring)
        if num_free <= 0:
            return None
        is_kept = self._keeps_last() if num_free == 1 else lambda run: False
        for line in self._in_turn():
            only_short = is_kept(line.run)
            for snapshot in line:
                if snapshot.key in self._measuring or (only_short and _is_long(snapshot)) or not self._fits(snapshot):
                    continue
                self._serve(line, snapshot)
                return snapshot
        return None

    def _in_turn(self) -> Iterator[Line]:
        now, overdue = self._clock(), dict[str, float]()
        for (run, _, _), turn in self._measuring.items():
            overdue[run] = overdue.get(run, 0.0) + max(0.0, now - turn.began - turn.expected)
        return (self._lines[run] for run in self._fair.in_turn(self._waiting, overdue))

    def _serve(self, line: Line, snapshot: Snapshot) -> None:
        self._num_turns += 1
        place = line.place(snapshot.key)
        place.turn = self._num_turns
        self._fair.serve(line.run, place.seconds)
        self._large_bytes += _large_bytes(snapshot)
        _, since = self._take(line, snapshot.key)
        self._measuring[snapshot.key] = _Turn(since, self._clock(), place.seconds)

    def _account(self, key: Key, turn: _Turn, seconds: float, now: float) -> None:
        """A turn of the layer is over, and took so long."""
        line = self._lines[key[0]]
        line.num_measured += 1
        line.place(key).seconds = seconds
        self._fair.correct(line.run, seconds - turn.expected)
        self._window.add(line.run, seconds, now)

    def _fits(self, snapshot: Snapshot) -> bool:
        """Whether it can be handed out beside what is. Small ones pass by a large one that cannot; large ones do not,
        or it might wait for ever."""
        if not (num_bytes := _large_bytes(snapshot)):
            return True
        if self._held is not None and self._held != snapshot.key and self._held in self._lines.get(self._held[0], ()):
            return False
        fits = not self._large_bytes or self._large_bytes + num_bytes <= self._max_measuring_bytes
        self._held = None if fits else snapshot.key
        return fits

    def _keeps_last(self) -> Callable[[str], bool]:
        """For which runs the last free slot is kept from long measurements: those of a namespace that has one under way
        while others are there; where all are of one namespace, the run that has one."""
        connected = self._connected()
        namespaces = {*map(namespace_of, connected), *self._waiting}
        by_namespace = len(namespaces) > 1

        def group(run: str) -> str:
            return namespace_of(run) if by_namespace else run

        busy = {group(key[0]) for key in self._measuring}
        present = {group(run) for run in connected}
        return lambda run: group(run) in busy and len(present) > (group(run) in present)

    def _take(self, line: Line, key: Key) -> tuple[Snapshot, float]:
        """It waits no more; with it, since when its layer did."""
        snapshot, since = line.take(key)
        self._bytes.add(line.run, -snapshot.data.nbytes)
        if not len(line):
            lines = self._waiting[line.namespace]
            del lines[line.run]
            if not lines:
                del self._waiting[line.namespace]
        return snapshot, since

    def _make_room(self, newest: Key) -> list[Superseded]:
        """Drop snapshots of the run that holds most, those first whose layers were measured last: in the newest one's
        namespace where that has too much, else in the one that holds most."""
        namespace = namespace_of(newest[0])
        max_bytes = self._quota(namespace).max_bytes
        dropped: list[Superseded] = []
        while True:
            if max_bytes is not None and self._bytes.of(namespace) > max_bytes:
                lines = self._waiting[namespace]
            elif self.num_bytes > self.max_bytes:
                lines = self._waiting[max(self._waiting, key=self._bytes.of)]
            else:
                return dropped
            line = max(lines.values(), key=lambda line: line.num_bytes)
            line.num_dropped += 1
            snapshot, _ = self._take(line, line.least_missed(newest))
            dropped.append(Superseded(snapshot, None))
            self.counters["dropped_for_room"] += 1


def _large_bytes(snapshot: Snapshot) -> int:
    """0 of a small one."""
    num_bytes = snapshot.data.nbytes
    return num_bytes if num_bytes > SMALL_BYTES else 0


def _is_long(snapshot: Snapshot) -> bool:
    if math.prod(snapshot.shape) ** 1.5 <= LONG_WORK:
        return False  # whatever its matrices are
    *experts, rows, cols = split(snapshot.layer, snapshot.shape).whole.shape
    return math.prod(experts) * rows * cols * min(rows, cols) > LONG_WORK
