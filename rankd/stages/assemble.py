"""Chunks of shards → whole snapshots. Pure: no socket, no clock of its own, no asyncio.

Everything a peer may do wrong here is a WireError, raised before anything is allocated or changed for it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass

from rankd.config import Limits
from rankd.known import Known, LayerRole
from rankd.quota import NO_QUOTA, Quota
from rankd.records import LayerStep, Snapshot
from rankd.shards import OpenLayer
from rankd.unfinished import Unfinished
from rankd.waiting import Waiting
from rankd_client.wire import Chunk, WireError


@dataclass(frozen=True, slots=True)
class Assembled:
    """What one chunk led to: a whole snapshot, a repeat of one that was dealt with (`settled`), or neither."""

    snapshot: Snapshot | None = None
    settled: bool = False


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
        self._known = Known(limits, quota)
        self._unfinished = Unfinished(limits, quota)
        self._waiting = Waiting()

    @property
    def num_bytes(self) -> int:
        """Of unfinished layers."""
        return self._unfinished.bytes.total

    def asks(self, run: str, chunk: Chunk) -> bool:
        """Whether `add` needs `last_steps`, which are dear to get: of no run twice, and not for a chunk that is refused
        whatever they are. Raises WireError for such a one."""
        if run in self._known:
            return False
        self._known.check_run(run)
        if chunk.shard.replica != 0:
            return False
        if chunk.offset:
            raise WireError("chunk_order", f"layer {chunk.layer!a} offset {chunk.offset}; expected offset 0")
        self._unfinished.check_room((run, chunk.layer, chunk.role, chunk.step), chunk)
        return True

    def add(
        self, run: str, session: bytes, chunk: Chunk, now: float, last_steps: Mapping[LayerRole, int] | None = None
    ) -> Assembled:
        """Take one chunk from client `session` at `now` (seconds, monotonic). `last_steps`: where it `asks`, the step
        of each layer that was taken last. Raises WireError."""
        key, layer_role = (run, chunk.layer, chunk.role, chunk.step), (chunk.layer, chunk.role)
        if run not in self._known:
            self._known.check_run(run)
        if run in self._known or last_steps:
            self._known.enter(run, last_steps or {}, now)
        self._known.check_layer(run, layer_role)
        if self._known.newest(run, layer_role) == chunk.step or chunk.shard.replica != 0:
            self.counters["num_repeats"] += 1
            self._waiting.repeated(key, session)
            return Assembled(settled=key not in self._waiting)
        layer = self._place(key, session, chunk, now)
        self._known.enter(run, {}, now)
        self._unfinished.store(key, session, chunk, now)
        if not layer.complete:
            return Assembled()
        self._unfinished.close(key)
        self._known.take(run, layer_role, chunk.step)
        self._waiting.taken(key, layer.shards)
        return Assembled(snapshot=layer.snapshot(key))

    def settle(self, key: LayerStep) -> set[bytes]:
        """A snapshot is recorded or superseded, as each one taken is. Returns the sessions that may hear so: all
        but those that are sending the same step again."""
        again = self._unfinished.get(key)
        return self._waiting.settle(key).difference(again.shards if again else ())

    def expire(self, now: float) -> Iterator[tuple[LayerStep, set[bytes]]]:
        """Give up layers whose shards did not all come in time; yields each with the sessions that sent a part."""
        limit = now - self.limits.assembly_timeout_seconds
        for key in self._unfinished.silent_since(limit):
            self.counters["dropped_timed_out"] += 1
            yield key, set(self._unfinished.close(key).shards)

    def idle_run(self, now: float, connected: Set[str] = frozenset()) -> str | None:
        """The run to forget, if there is no room for another: see Known.idle."""
        return self._known.idle(now, connected)

    def forget(self, run: str) -> None:
        self._known.forget(run)
        for key in self._unfinished.of_run(run):
            self._unfinished.close(key)

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
