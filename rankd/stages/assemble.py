"""Chunks of shards → whole snapshots. Pure: no socket, no clock of its own, no asyncio.

Everything a peer may do wrong here is a WireError, raised before anything is allocated or changed for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field

from rankd.config import Limits
from rankd.quota import NO_QUOTA, Quota, namespace_of
from rankd.records import LayerStep, Snapshot
from rankd.shards import OpenLayer
from rankd.unfinished import Unfinished
from rankd_client.wire import Chunk, WireError

LayerRole = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Assembled:
    """What one chunk led to: a whole snapshot, a repeat of one that was dealt with (`settled`), or neither."""

    snapshot: Snapshot | None = None
    settled: bool = False


@dataclass(slots=True)
class _Run:
    seen_at: float
    newest: dict[LayerRole, int] = field(default_factory=dict)
    """(layer, role) → step of the last snapshot taken."""


class Assemble:
    """Collects the shards of a layer and step until they cover the matrix, and notices what must not be lost.

    A layer whose elements are not all finite, or all zero, is marked here, before newest-wins could displace it.
    """

    def __init__(
        self,
        limits: Limits,
        counters: Counter[str],
        quota: Callable[[str], Quota] = lambda namespace: NO_QUOTA,
    ) -> None:
        self.limits = limits
        self.counters = counters
        self._quota = quota
        self._runs: dict[str, _Run] = {}
        self._unfinished = Unfinished(limits, quota)
        self._waiting: dict[LayerStep, set[bytes]] = {}

    @property
    def num_bytes(self) -> int:
        """Of unfinished layers."""
        return self._unfinished.bytes.total

    def knows(self, run: str) -> bool:
        return run in self._runs

    def add(
        self, run: str, session: bytes, chunk: Chunk, now: float, last_steps: Mapping[LayerRole, int] | None = None
    ) -> Assembled:
        """Take one chunk from client `session` at `now` (seconds, monotonic). `last_steps`: of a run not known here,
        the step of each of its layers that was taken last. Raises WireError."""
        known = self._check_run(run, chunk, now, last_steps or {})
        key = (run, chunk.layer, chunk.role, chunk.step)
        again = known.newest.get((chunk.layer, chunk.role)) == chunk.step
        if again:  # of a run that is recorded: it has its place, and need not be looked up for each of its layers
            self._runs[run] = known
        if again or chunk.shard.replica != 0:
            self.counters["num_repeats"] += 1
            waiting = self._waiting.get(key)
            if waiting is not None:
                waiting.add(session)
            return Assembled(settled=waiting is None)
        layer = self._place(key, session, chunk, now)
        self._runs[run] = known
        self._unfinished.store(key, session, chunk, now)
        if not layer.complete:
            return Assembled()
        self._unfinished.close(key)
        known.newest[chunk.layer, chunk.role] = chunk.step
        # The same step twice, where the run went back in between: whoever sent it first waits as well.
        self._waiting.setdefault(key, set()).update(layer.shards)
        return Assembled(snapshot=layer.snapshot(key))

    def settle(self, key: LayerStep) -> set[bytes]:
        """The sessions that wait to hear what became of a snapshot (recorded or superseded)."""
        return self._waiting.pop(key, set())

    def expire(self, now: float) -> Iterator[tuple[LayerStep, set[bytes]]]:
        """Give up layers whose shards did not all come in time; yields each with the sessions that sent a part."""
        limit = now - self.limits.assembly_timeout_seconds
        for key in self._unfinished.silent_since(limit):
            self.counters["dropped_timed_out"] += 1
            yield key, set(self._unfinished.close(key).shards)

    def idle_run(self, now: float, connected: Set[str] = frozenset()) -> str | None:
        """The longest-silent run that is not `connected`, if there is no room for another and it has been silent long
        enough."""
        if len(self._runs) < self.limits.max_runs:
            return None
        oldest = min(self._runs.keys() - connected, key=lambda name: self._runs[name].seen_at, default=None)
        if oldest is None or now - self._runs[oldest].seen_at <= self.limits.run_idle_seconds:
            return None
        return oldest

    def forget(self, run: str) -> None:
        self._runs.pop(run, None)
        for key in self._unfinished.of_run(run):
            self._unfinished.close(key)

    def _check_run(self, run: str, chunk: Chunk, now: float, last_steps: Mapping[LayerRole, int]) -> _Run:
        """What is known of `run`; a new one takes its place only with the first chunk that is kept."""
        known = self._runs.get(run)
        if known is None:
            self._check_room_for_run(run)
            known = _Run(now, dict(last_steps))
        known.seen_at = now
        if (chunk.layer, chunk.role) not in known.newest and len(known.newest) >= self.limits.max_layers_per_run:
            raise WireError("too_many_layers", f"run has {len(known.newest)}; at most {self.limits.max_layers_per_run}")
        return known

    def _check_room_for_run(self, run: str) -> None:
        if len(self._runs) >= self.limits.max_runs:
            raise WireError("too_many_runs", f"{len(self._runs)} runs; at most {self.limits.max_runs}")
        namespace = namespace_of(run)
        max_runs = self._quota(namespace).max_runs
        if max_runs is not None and sum(namespace_of(name) == namespace for name in self._runs) >= max_runs:
            raise WireError("quota_exceeded", f"namespace {namespace!a} has {max_runs} runs, which is its quota")

    def _place(self, key: LayerStep, session: bytes, chunk: Chunk, now: float) -> OpenLayer:
        """The open layer that `chunk` belongs to; it and its shard are opened if this is their first."""
        if not chunk.offset:
            self._unfinished.abandon(key, session)
            self._unfinished.check_room(key, chunk)
            return self._unfinished.open(key, session, chunk, now)
        layer = self._unfinished.get(key)
        shard = layer.shards.get(session) if layer else None
        if layer is None or shard is None or not layer.continues(shard, chunk):
            raise WireError("chunk_order", f"layer {chunk.layer!a} offset {chunk.offset}; expected offset 0")
        if chunk.offset != shard.num_received:
            raise WireError("chunk_order", f"offset {chunk.offset}; expected {shard.num_received}")
        return layer
