"""The one queue between intake and analysis: bounded in bytes, newest wins per layer, fair to namespaces and runs."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Set
from dataclasses import dataclass

from rankd.parts import split
from rankd.quota import NO_QUOTA, Quota, Tally, namespace_of
from rankd.records import Snapshot

Key = tuple[str, str, str]

LONG_WORK = 1 << 31
"""rows × cols × min(rows, cols), of all experts together, above which a measurement is long: a second or so on one
core, and it cannot be interrupted."""


MAX_MEASURING_BYTES = 1 << 30
"""Of large snapshots that are handed out together; a larger one goes alone among them. A GPU has many slots, for
batches of small matrices; each might hold one of the largest."""

SMALL_BYTES = 32 << 20
"""Up to here they neither count nor wait for room: 32 slots of them hold as much as the large ones may."""


@dataclass(frozen=True, slots=True)
class Superseded:
    """A snapshot that will not be measured; `by_step` is the step that took its place, None for want of room."""

    snapshot: Snapshot
    by_step: int | None


class Mailbox:
    """Holds at most `max_bytes` of snapshots, whoever pushes how fast, and hands out `num_slots` at a time.

    Four promises: a newer snapshot of a layer takes the place in line of the older one; namespaces are served in turn,
    in each its runs, and a layer being measured is passed over, not waited for; while others are `connected`, the last
    free slot is not for a long measurement of who has one under way; a notice (a snapshot known to be non-finite or
    all-zero, which carries no bytes) needs no slot, goes first and is never displaced.
    """

    def __init__(
        self,
        max_bytes: int,
        num_slots: int,
        counters: Counter[str],
        quota: Callable[[str], Quota] = lambda namespace: NO_QUOTA,
        connected: Callable[[], Set[str]] = frozenset,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`connected`: the runs whose trainers are there. `clock`: seconds."""
        self.max_bytes = max_bytes
        self.num_slots = num_slots
        self.counters = counters
        self.num_done = 0
        """Snapshots that were handed out and are dealt with."""
        self._quota = quota
        self._connected = connected
        self._clock = clock
        self._notices: dict[tuple[Key, bool], Snapshot] = {}
        self._lines: OrderedDict[str, OrderedDict[str, dict[Key, Snapshot]]] = OrderedDict()
        """Namespace → run → what waits; whose turn it is comes first."""
        self._run_bytes: Counter[str] = Counter()
        self._bytes = Tally()
        self._waiting_since: dict[Key, float] = {}
        """Those that wait longest first."""
        self._measuring: dict[Key, float] = {}
        """Since when it waited."""
        self._large_bytes = 0
        """Of large snapshots that are handed out."""
        self._held: Key | None = None
        """The large one that waits for room, which no other large one takes before it."""
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._notices) + sum(len(line) for runs in self._lines.values() for line in runs.values())

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
        now = self._clock()
        longest = next(iter(self._waiting_since.values()), now)
        return now - min([longest, *self._measuring.values()])

    def put(self, snapshot: Snapshot) -> list[Superseded]:
        """Take `snapshot`; returns those that it displaced (or itself, where the same notice waits already)."""
        self._changed.set()
        if snapshot.noticed:
            first = self._notices.setdefault((snapshot.key, snapshot.zero), snapshot)
            return [] if first is snapshot else [Superseded(snapshot, first.step)]
        displaced = []
        line = self._lines.setdefault(namespace_of(snapshot.run), OrderedDict()).setdefault(snapshot.run, {})
        if (older := line.get(snapshot.key)) is not None:
            self.counters["dropped_superseded"] += 1
            self._count(older, -1)
            displaced.append(Superseded(older, snapshot.step))
        self._waiting_since.setdefault(snapshot.key, self._clock())
        line[snapshot.key] = snapshot  # an existing key keeps its place in line, so that no layer starves
        self._count(snapshot, 1)
        return displaced + self._make_room(snapshot.key)

    async def get(self) -> Snapshot | None:
        """The next snapshot to measure, waiting for one; None when closed and empty. Call `done` with it afterwards."""
        while (snapshot := self._next()) is None:
            if self._closed and not len(self):
                return None
            self._changed.clear()
            await self._changed.wait()
        return snapshot

    def done(self, snapshot: Snapshot) -> None:
        """The measurement of `snapshot` is over: the layer's next one may start."""
        self.num_done += 1
        if not snapshot.noticed:
            self._measuring.pop(snapshot.key, None)
            self._large_bytes -= _large_bytes(snapshot)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will be put; `get` hands out what is left and then None."""
        self._closed = True
        self._changed.set()

    def _next(self) -> Snapshot | None:
        if self._notices:
            return self._notices.pop(next(iter(self._notices)))
        num_free = self.num_slots - len(self._measuring)
        if num_free <= 0:
            return None
        is_kept = self._keeps_last() if num_free == 1 else lambda run: False
        for namespace, runs in self._lines.items():
            for run, line in runs.items():
                only_short = is_kept(run)
                for key, snapshot in line.items():
                    if key in self._measuring or (only_short and _is_long(snapshot)) or not self._fits(snapshot):
                        continue
                    self._lines.move_to_end(namespace)
                    runs.move_to_end(run)
                    self._measuring[key] = self._waiting_since[key]
                    self._large_bytes += _large_bytes(snapshot)
                    return self._take(key)
        return None

    def _fits(self, snapshot: Snapshot) -> bool:
        """Whether it can be handed out beside what is. Small ones pass by a large one that cannot; large ones do not,
        or it might wait for ever."""
        if not (num_bytes := _large_bytes(snapshot)):
            return True
        if self._held in self._waiting_since and self._held != snapshot.key:
            return False
        fits = not self._large_bytes or self._large_bytes + num_bytes <= MAX_MEASURING_BYTES
        self._held = None if fits else snapshot.key
        return fits

    def _keeps_last(self) -> Callable[[str], bool]:
        """For which runs the last free slot is kept from long measurements: those of a namespace that has one under way
        while others are there; where all are of one namespace, the run that has one."""
        connected = self._connected()
        by_namespace = len({namespace_of(run) for run in (*connected, *self._run_bytes)}) > 1

        def group(run: str) -> str:
            return namespace_of(run) if by_namespace else run

        busy = {group(key[0]) for key in self._measuring}
        present = {group(run) for run in connected}
        return lambda run: group(run) in busy and len(present) > (group(run) in present)

    def _take(self, key: Key) -> Snapshot:
        run, namespace = key[0], namespace_of(key[0])
        runs = self._lines[namespace]
        snapshot = runs[run].pop(key)
        del self._waiting_since[key]
        self._count(snapshot, -1)
        if not runs[run]:
            del runs[run], self._run_bytes[run]
        if not runs:
            del self._lines[namespace]
        return snapshot

    def _count(self, snapshot: Snapshot, sign: int) -> None:
        self._bytes.add(snapshot.run, sign * snapshot.data.nbytes)
        self._run_bytes[snapshot.run] += sign * snapshot.data.nbytes

    def _make_room(self, newest: Key) -> list[Superseded]:
        """Drop the longest-waiting snapshots of the run that holds most, the newest arrival last of all: in the newest
        one's namespace where that has too much, else in the one that holds most."""
        namespace = namespace_of(newest[0])
        max_bytes = self._quota(namespace).max_bytes
        dropped: list[Superseded] = []
        while True:
            if max_bytes is not None and self._bytes.of(namespace) > max_bytes:
                runs = self._lines[namespace]
            elif self.num_bytes > self.max_bytes:
                runs = self._lines[max(self._lines, key=self._bytes.of)]
            else:
                return dropped
            run = max(runs, key=self._run_bytes.__getitem__)
            key = next((key for key in runs[run] if key != newest), newest)
            dropped.append(Superseded(self._take(key), None))
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
