"""Memory for an outbox's snapshots: where a layer lay before, a free place, or that of what is needed least."""

from __future__ import annotations

from typing import Protocol

from rankd_client.arena import Arena, Region
from rankd_client.snapshot import Key, Snapshot

MAX_PLACES = 10_000
"""Layers whose places are remembered; whoever pushes under ever new names begins anew."""

NUM_PLACES = 2
"""Of a layer in the arena, that are remembered: it is written to one while the other is sent."""


class Tenant(Protocol):
    """What lies in a region: a snapshot, or many side by side."""

    @property
    def region(self) -> Region: ...

    def held(self) -> bool:
        """Whether somebody still reads it, or writes to it."""
        ...


class Room:
    """Not thread-safe: the outbox locks around it, and the two mappings are the outbox's. `num_dropped` counts unsent
    snapshots that had to make room for another layer."""

    def __init__(self, arena: Arena, queue: dict[Key, Snapshot], awaiting: dict[Key, Snapshot]) -> None:
        self.arena = arena
        self.num_dropped = 0
        self._queue = queue
        self._awaiting = awaiting
        self._places: dict[Key, list[Region]] = {}
        """Where each layer lay last: there again, so that what is copied together stays side by side."""
        self._retired: list[Tenant] = []
        """Nobody wants them any more, but ZeroMQ still holds frames of them, or a GPU writes to them."""
        self._victims: list[Snapshot] = []
        """What a push of `_victims_step` may give up for other layers, the last first; some are gone since."""
        self._victims_bytes = 0
        self._victims_step: int | None = None

    @property
    def has_retired(self) -> bool:
        return bool(self._retired)

    def find(self, key: Key, step: int, num_bytes: int) -> Region | None:
        """For a layer at `step`; None where no memory can be had."""
        region = self._place(key, num_bytes) or self._make_room(key, step, num_bytes)
        if region is None and num_bytes <= self.arena.free_bytes:
            self._places.clear()  # what is free lies in pieces between them: each would come back to where it lay
        return region

    def find_side_by_side(self, keys: frozenset[Key], num_bytes: int) -> Region | None:
        """For all these layers at once, whose older snapshots are given up for it where they were sent; None where
        there is no such place all the same."""
        region = self.arena.reserve(num_bytes)
        if region is None:
            self.purge()
            for old in [old for key, old in self._awaiting.items() if key in keys and not old.held()]:
                del self._awaiting[old.key]
                self.arena.release(old.region)
            region = self.arena.reserve(num_bytes)
        return region

    def lies(self, key: Key, region: Region) -> None:
        """To be remembered: there the layer lies now."""
        if len(self._places) >= MAX_PLACES:
            self._places.clear()
        others = [place for place in self._places.get(key, ()) if place.start != region.start]
        self._places[key] = [region, *others][:NUM_PLACES]

    def free(self, tenant: Tenant) -> None:
        """It is not needed any more."""
        if not self._release(tenant):
            self._retired.append(tenant)

    def purge(self) -> None:
        """Free what ZeroMQ has let go of."""
        self._retired = [old for old in self._retired if not self._release(old)]

    def _release(self, tenant: Tenant) -> bool:
        if tenant.held():
            return False
        self.arena.release(tenant.region)
        return True

    def _place(self, key: Key, num_bytes: int) -> Region | None:
        """Where the layer lay before, if that is free; else where nobody did, else the first free place."""
        for place in self._places.get(key, ()):
            if place.num_bytes == num_bytes and (region := self.arena.reserve_again(place)) is not None:
                return region
        region = self.arena.reserve_fresh(num_bytes) or self.arena.reserve(num_bytes)
        if region is not None:
            self.lies(key, region)
        return region

    def _make_room(self, key: Key, step: int, num_bytes: int) -> Region | None:
        """Give up what is needed least until `num_bytes` fit: what ZeroMQ has let go of, the same layer's older
        snapshot, others that were sent, and at last unsent ones; the oldest step first, never one of this step."""
        self.purge()
        region = self.arena.reserve(num_bytes)
        missing_bytes = max(1, num_bytes - self.arena.free_bytes)
        while region is None and (victims := self._take_victims(key, step, missing_bytes)):
            for old in victims:
                if self._awaiting.get(old.key) is old:
                    del self._awaiting[old.key]
                else:
                    del self._queue[old.key]
                    self.num_dropped += 1
                self.arena.release(old.region)
            region = self.arena.reserve(num_bytes)
            missing_bytes = 1  # there is enough now, if not in one piece
        return region

    def _take_victims(self, key: Key, step: int, missing_bytes: int) -> list[Snapshot]:
        """The first to be given up that have `missing_bytes` together; none if even all of them have not."""
        if self._victims_step != step:
            self._order_victims(step)
        own = self._awaiting.get(key)
        taken = [own] if own is not None and not own.held() else []
        missing_bytes -= sum(old.region.reserved_bytes for old in taken)
        passed: list[Snapshot] = []
        while 0 < missing_bytes <= self._victims_bytes:
            old = self._victims.pop()
            self._victims_bytes -= old.region.reserved_bytes
            if self._awaiting.get(old.key) is old or (self._queue.get(old.key) is old and old.written):
                passed.append(old)
                if old is not own and not old.held():
                    taken.append(old)
                    missing_bytes -= old.region.reserved_bytes
        if missing_bytes > 0:
            taken = []
        gone = set(taken)
        back = [old for old in reversed(passed) if old not in gone]
        self._victims += back
        self._victims_bytes += sum(old.region.reserved_bytes for old in back)
        return taken

    def _order_victims(self, step: int) -> None:
        """Once for all layers of a push, or each of thousands would sort thousands. What the link deals with in the
        meantime is passed over as it comes up."""
        sent = sorted(self._awaiting.values(), key=lambda old: old.step)
        unsent = sorted((old for old in self._queue.values() if old.written), key=lambda old: old.step)
        self._victims = [old for old in reversed((*sent, *unsent)) if old.step < step]
        self._victims_bytes = sum(old.region.reserved_bytes for old in self._victims)
        self._victims_step = step
