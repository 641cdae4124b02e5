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
from rankd.race import Lost, Race, Why
from rankd.records import LayerStep, Snapshot
from rankd.shards import OpenLayer
from rankd.unfinished import Unfinished
from rankd.waiting import Waiting
from rankd_client.wire import Chunk, Reported, WireError

MAX_OPEN_STEPS = 16
"""Of a layer that several clients make. Processes of a job wait for one another; those that are further apart than so
many pushes have a plan that is too dense."""

NO_ROOM = frozenset({"assembly_full", "quota_exceeded"})


@dataclass(frozen=True, slots=True)
class Assembled:
    """What one chunk led to: a whole snapshot, a repeat of one that was dealt with (`settled`), or neither."""

    snapshot: Snapshot | None = None
    settled: bool = False
    is_new: bool = False
    """Of what a trainer reports: it was not taken before."""


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
        self._race = Race()
        self._lost: list[Lost] = []

    @property
    def num_bytes(self) -> int:
        """Of unfinished layers."""
        return self._unfinished.bytes.total

    def asks(self, run: str, chunk: Chunk | Reported) -> bool:
        """Whether `add` or `report` needs `last_steps`, which are dear to get: of no run twice, and not for a chunk
        that is refused whatever they are. Raises WireError for such a one."""
        if run in self._known:
            return False
        self._known.check_run(run)
        if isinstance(chunk, Reported):
            return True
        if chunk.shard.replica != 0:
            return False
        if chunk.offset:
            raise WireError("chunk_order", f"layer {chunk.layer!a} offset {chunk.offset}; expected offset 0")
        self._unfinished.check_room((run, chunk.layer, chunk.role, chunk.step), chunk)
        return True

    def add(
        self,
        run: str,
        session: bytes,
        chunk: Chunk,
        now: float,
        last_steps: Mapping[LayerRole, int] | None = None,
        confirm: Callable[[], None] = lambda: None,
    ) -> Assembled:
        """Take one chunk from client `session` at `now` (seconds, monotonic). `last_steps`: where it `asks`, the step
        of each layer that was taken last. `confirm`: called once the payload is copied, raises WireError where the copy
        may be torn. Raises WireError."""
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
        if self._is_of_one_given_up(key, session, chunk, now):
            return Assembled()
        layer = self._place(key, session, chunk, now)
        if layer is None:
            return Assembled()
        self._known.enter(run, {}, now)
        self._unfinished.store(key, session, chunk, now)
        try:
            confirm()
        except WireError:
            self._unfinished.drop(key, session)
            raise
        if not layer.complete:
            return Assembled()
        self._unfinished.close(key)
        self.counters["num_assembled"] += 1
        self._known.take(run, layer_role, chunk.step)
        self._waiting.taken(key, layer.shards)
        for step in self._race.whole(key, layer.shards, self._unfinished.steps(key)):
            self._give_up((*key[:3], step), "overtaken", now, chunk.step)
        return Assembled(snapshot=layer.snapshot(key))

    def report(
        self,
        run: str,
        session: bytes,
        message: Reported,
        now: float,
        last_steps: Mapping[LayerRole, int] | None = None,
    ) -> Assembled:
        """Take what a trainer reports of a layer and step, which counts as much as a snapshot of it: arguments as for
        `add`. A client has several on the way, and sends all of them again over a new connection: an earlier step is a
        return only where it is sent for the first time. Raises WireError."""
        key, layer_role = (run, message.layer, message.role, message.step), (message.layer, message.role)
        if run not in self._known:
            self._known.check_run(run)
        if run in self._known or last_steps:
            self._known.enter(run, last_steps or {}, now)
        self._known.check_layer(run, layer_role)
        newest = self._known.newest(run, layer_role)
        if newest is not None and (newest == message.step or (message.again and message.step < newest)):
            self.counters["num_repeats"] += 1
            self._waiting.repeated(key, session)
            return Assembled(settled=key not in self._waiting)
        self._known.enter(run, {}, now)
        self._known.take(run, layer_role, message.step)
        self._waiting.taken(key, [session])
        return Assembled(is_new=True)

    def take_lost(self) -> list[Lost]:
        """What was given up since the last call; to be asked after each `add`, whether it raised or not."""
        lost, self._lost = self._lost, []
        return lost

    def settle(self, key: LayerStep) -> set[bytes]:
        """A snapshot is recorded or superseded, as each one taken is. Returns the sessions that may hear so: all
        but those that are sending the same step again."""
        again = self._unfinished.get(key)
        return self._waiting.settle(key).difference(again.shards if again else ())

    def lose(self, session: bytes) -> None:
        """The connection of `session` broke: what it had sent in part is void. Should it come back, it begins anew."""
        for key, layer in list(self._unfinished.items()):
            if (shard := layer.shards.get(session)) is not None and not shard.complete:
                if len(layer.shards) == 1:
                    self.counters["dropped_process_gone"] += 1
                self._unfinished.drop(key, session)

    def expire(self, now: float, gone: frozenset[bytes] = frozenset(), runs: Set[str] | None = None) -> list[Lost]:
        """Give up layers whose shards did not all come in time, or never will: because a client of theirs is `gone`,
        or all of a run are: `runs` are those that have somebody (None: not known)."""
        limit = now - self.limits.assembly_timeout_seconds
        for key, layer in list(self._unfinished.items()):
            if layer.heard_at < limit:
                self._give_up(key, "timed_out", now)
                continue
            is_left = runs is not None and key[0] not in runs
            if is_left or (gone and (gone.issuperset(layer.shards) or self._race.waits_for_any(key, layer, gone))):
                self._give_up(key, "process_gone", now)
        return self.take_lost()

    def idle_run(self, now: float, connected: Set[str] = frozenset()) -> str | None:
        """The run to forget, if there is no room for another: see Known.idle."""
        return self._known.idle(now, connected)

    def forget(self, run: str) -> None:
        self._known.forget(run)
        self._race.forget(run)
        for key in self._unfinished.of_run(run):
            self._unfinished.close(key)

    def _is_of_one_given_up(self, key: LayerStep, session: bytes, chunk: Chunk, now: float) -> bool:
        """Whether `chunk` is more of what its client was, or is now, told to be given up."""
        why = self._race.gave_up(key, now - self.limits.assembly_timeout_seconds)
        if why is None:
            return False
        if chunk.offset:
            layer = self._unfinished.get(key)
            return layer is None or session not in layer.shards
        if why == "assembly_full" and not chunk.shard.whole:  # those who had sent theirs will not send them again
            self._turn_away(key, session, why, None, now)
            return True
        return False

    def _place(self, key: LayerStep, session: bytes, chunk: Chunk, now: float) -> OpenLayer | None:
        """The open layer that `chunk` belongs to; it and its shard are opened if this is their first. None: it would be
        of no use."""
        if not chunk.offset:
            self._unfinished.abandon(key, session)
            return self._open(key, session, chunk, now)
        layer = self._unfinished.get(key)
        shard = layer.shards.get(session) if layer else None
        if layer is None or shard is None or not layer.continues(shard, chunk):
            raise WireError("chunk_order", f"layer {chunk.layer!a} offset {chunk.offset}; expected offset 0")
        if chunk.offset != shard.num_received:
            raise WireError("chunk_order", f"offset {chunk.offset}; expected {shard.num_received}")
        return layer

    def _open(self, key: LayerStep, session: bytes, chunk: Chunk, now: float) -> OpenLayer | None:
        if chunk.shard.whole:
            self._unfinished.check_room(key, chunk)
            return self._unfinished.open(key, session, chunk, now)
        layer_key, step = key[:3], key[3]
        steps = self._unfinished.steps(key)
        start = self._race.start(key, session, steps, self._known.newest(key[0], key[1:3]))
        if start.by_step is not None:
            self._turn_away(key, session, "overtaken", start.by_step, now)
            return None
        for overtaken in start.overtaken:
            self._give_up((*layer_key, overtaken), "overtaken", now, step)
        if start.is_back:
            for later in [t for t in steps if t > step]:
                self._unfinished.drop((*layer_key, later), session)
        self._make_room(key, chunk, now)
        layer = self._unfinished.open(key, session, chunk, now)
        layer.is_back |= start.is_back
        return layer

    def _make_room(self, key: LayerStep, chunk: Chunk, now: float) -> None:
        """The earliest step is the next to be whole, and takes the room of later ones of its run. Where there are none
        (WireError), all of this layer and step gives way: without this part it would be kept for nothing."""
        steps = self._unfinished.steps(key)
        if key[3] not in steps and len(steps) >= MAX_OPEN_STEPS:
            latest = max(steps)
            if latest < key[3]:
                self._give_up_for_room(key, now)
                raise WireError("assembly_full", f"layer {chunk.layer!a} has {len(steps)} unfinished steps")
            self._give_up_for_room((*key[:3], latest), now)
        others: Iterator[LayerStep] | None = None
        while True:
            try:
                self._unfinished.check_room(key, chunk)
                return
            except WireError as error:
                if error.code not in NO_ROOM:
                    raise
                others = others or iter(self._unfinished.later_in_run(key))
                other = next(others, None)
                self._give_up_for_room(key if other is None else other, now)
                if other is None:
                    raise

    def _give_up_for_room(self, key: LayerStep, now: float) -> None:
        if self._unfinished.get(key) is not None:
            self._give_up(key, "assembly_full", now)
        else:
            self._race.given_up(key, "assembly_full", now)

    def _give_up(self, key: LayerStep, why: Why, now: float, by_step: int | None = None) -> None:
        self.counters[f"dropped_{why}"] += 1
        self._lost.append(Lost(key, frozenset(self._unfinished.close(key).shards), why, by_step))
        self._race.given_up(key, why, now)

    def _turn_away(self, key: LayerStep, session: bytes, why: Why, by_step: int | None, now: float) -> None:
        """One shard, of a layer that will not be whole. The layer counts once."""
        is_first = self._race.gave_up(key, now - self.limits.assembly_timeout_seconds) is None
        self.counters[f"dropped_{why}" if is_first else "dropped_late_shards"] += 1
        self._lost.append(Lost(key, frozenset([session]), why, by_step, is_shard=not is_first))
        self._race.given_up(key, why, now)
