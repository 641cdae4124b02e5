"""The one queue between intake and analysis: bounded in bytes, newest wins per layer, fair between runs."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from rankd.quota import NO_QUOTA, Quota, namespace_of
from rankd.records import Snapshot

Key = tuple[str, str, str]


@dataclass(frozen=True, slots=True)
class Superseded:
    """A snapshot that will not be measured; `by_step` is the step that took its place, None for want of room."""

    snapshot: Snapshot
    by_step: int | None


class Mailbox:
    """Holds at most `max_bytes` of snapshots, whoever pushes how fast, and hands out `num_slots` at a time.

    Three promises: a newer snapshot of a layer takes the place in line of the older one; runs are served in turn, and a
    layer being measured is passed over, not waited for; a notice (a snapshot known to be non-finite or all-zero, which
    carries no bytes) needs no slot, goes first and is never displaced.
    """

    def __init__(
        self,
        max_bytes: int,
        num_slots: int,
        counters: Counter[str],
        quota: Callable[[str], Quota] = lambda namespace: NO_QUOTA,
    ) -> None:
        self.max_bytes = max_bytes
        self.num_slots = num_slots
        self.counters = counters
        self.num_bytes = 0
        self.num_done = 0
        """Snapshots that were handed out and are dealt with."""
        self._quota = quota
        self._notices: dict[tuple[Key, bool], Snapshot] = {}
        self._waiting: dict[str, dict[Key, Snapshot]] = {}
        self._run_bytes: Counter[str] = Counter()
        self._turns: deque[str] = deque()
        self._measuring: set[Key] = set()
        self._changed = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._notices) + sum(len(line) for line in self._waiting.values())

    @property
    def num_unfinished(self) -> int:
        """Snapshots that wait or are being measured."""
        return len(self) + len(self._measuring)

    def put(self, snapshot: Snapshot) -> list[Superseded]:
        """Take `snapshot`; returns those that it displaced (or itself, where the same notice waits already)."""
        self._changed.set()
        if snapshot.noticed:
            first = self._notices.setdefault((snapshot.key, snapshot.zero), snapshot)
            return [] if first is snapshot else [Superseded(snapshot, first.step)]
        if snapshot.run not in self._waiting:
            self._waiting[snapshot.run] = {}
            self._turns.append(snapshot.run)
        displaced = []
        line = self._waiting[snapshot.run]
        if (older := line.get(snapshot.key)) is not None:
            self.counters["dropped_superseded"] += 1
            self._count(older, -1)
            displaced.append(Superseded(older, snapshot.step))
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
            self._measuring.discard(snapshot.key)
        self._changed.set()

    def close(self) -> None:
        """Nothing more will be put; `get` hands out what is left and then None."""
        self._closed = True
        self._changed.set()

    def _next(self) -> Snapshot | None:
        if self._notices:
            return self._notices.pop(next(iter(self._notices)))
        if len(self._measuring) >= self.num_slots:
            return None
        for _ in range(len(self._turns)):
            run = self._turns[0]
            self._turns.rotate(-1)
            line = self._waiting[run]
            key = next((key for key in line if key not in self._measuring), None)
            if key is None:
                continue
            snapshot = self._take(run, key)
            self._measuring.add(key)
            return snapshot
        return None

    def _take(self, run: str, key: Key) -> Snapshot:
        snapshot = self._waiting[run].pop(key)
        self._count(snapshot, -1)
        if not self._waiting[run]:
            del self._waiting[run], self._run_bytes[run]
            self._turns.remove(run)
        return snapshot

    def _count(self, snapshot: Snapshot, sign: int) -> None:
        self.num_bytes += sign * snapshot.data.nbytes
        self._run_bytes[snapshot.run] += sign * snapshot.data.nbytes

    def _make_room(self, newest: Key) -> list[Superseded]:
        """Drop the longest-waiting snapshots of the run that holds most, the newest arrival last of all: of the newest
        one's namespace where that has too much, else of any."""
        namespace = namespace_of(newest[0])
        max_bytes = self._quota(namespace).max_bytes
        dropped: list[Superseded] = []
        while True:
            own = [run for run in self._run_bytes if namespace_of(run) == namespace] if max_bytes is not None else []
            if max_bytes is not None and sum(self._run_bytes[run] for run in own) > max_bytes:
                runs: Collection[str] = own
            elif self.num_bytes > self.max_bytes:
                runs = self._run_bytes
            else:
                return dropped
            run = max(runs, key=self._run_bytes.__getitem__)
            key = next((key for key in self._waiting[run] if key != newest), newest)
            dropped.append(Superseded(self._take(run, key), None))
            self.counters["dropped_for_room"] += 1
