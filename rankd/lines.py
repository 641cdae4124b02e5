"""What waits of one run, and in which order. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from dataclasses import dataclass

from rankd.namespaces import namespace_of
from rankd.records import Snapshot

Key = tuple[str, str, str]

FIRST_SECONDS = 0.01
"""For what a layer's first measurement is taken, until it is over."""


@dataclass(slots=True)
class Place:
    """What is remembered of a layer, whether it waits or not."""

    turn: int = 0
    """Number of its last turn; 0: it had none."""
    seconds: float = FIRST_SECONDS
    """That its last measurement took."""


class Line:
    """The newest snapshot of each layer of `run` that waits; the layer that was measured longest ago comes first, those
    that never were before all, in the order of their coming. Remembers each layer of the run: a few hundred bytes."""

    def __init__(self, run: str) -> None:
        self.run = run
        self.namespace = namespace_of(run)
        self.num_bytes = 0
        self.num_superseded = self.num_dropped = self.num_measured = 0
        """Since the run is known: gave way to a newer one, or for want of room; were measured."""
        self._waiting: dict[Key, Snapshot] = {}
        self._since: dict[Key, float] = {}
        """Those that wait longest first."""
        self._entries: dict[Key, tuple[int, int, Key]] = {}
        self._order: list[tuple[int, int, Key]] = []
        """Turn, number of arrival, key; ascending."""
        self._num_arrived = 0
        self._places: dict[Key, Place] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, key: Key) -> bool:
        return key in self._waiting

    def __iter__(self) -> Iterator[Snapshot]:
        """In their order; nothing may be put or taken meanwhile."""
        return (self._waiting[key] for _, _, key in self._order)

    @property
    def since(self) -> float | None:
        """Since when the layer waits that waits longest."""
        return next(iter(self._since.values()), None)

    def put(self, snapshot: Snapshot, now: float) -> Snapshot | None:
        """Returns the older one of its layer, whose place it takes: the layer keeps its place, so that none starves."""
        key = snapshot.key
        older = self._waiting.get(key)
        if older is None:
            self._num_arrived += 1
            entry = self._places.setdefault(key, Place()).turn, self._num_arrived, key
            self._entries[key] = entry
            insort(self._order, entry)
            self._since[key] = now
        else:
            self.num_bytes -= older.data.nbytes
            self.num_superseded += 1
        self._waiting[key] = snapshot
        self.num_bytes += snapshot.data.nbytes
        return older

    def take(self, key: Key) -> tuple[Snapshot, float]:
        """The snapshot, which waits no more, and since when its layer did."""
        snapshot = self._waiting.pop(key)
        self.num_bytes -= snapshot.data.nbytes
        del self._order[bisect_left(self._order, self._entries.pop(key))]
        return snapshot, self._since.pop(key)

    def place(self, key: Key) -> Place:
        """Of a layer that was put."""
        return self._places[key]

    def least_missed(self, newest: Key) -> Key:
        """Of those that wait, the layer that was measured last. Where none ever was, the one that came first, and
        `newest`, which has just come, last of all."""
        turn, _, key = self._order[-1]
        return key if turn else next((key for _, _, key in self._order if key != newest), newest)
