"""Snapshots between the training thread, which writes them, and the link's thread, which sends them.

Per (layer, role) there is at most one of each: writing or pending (in the queue), sending, awaiting (sent whole, not
yet recorded). A newer one takes the place of an older one as soon as it is whole. A region goes back to the arena only
when ZeroMQ holds no frame of it any more. The lock is held for bookkeeping alone, never while bytes are copied or sent.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import count

from rankd_client.arena import Arena, Region
from rankd_client.reports import Reports
from rankd_client.returns import Returns
from rankd_client.snapshot import WHOLE, Arrival, Key, Snapshot, Tracker
from rankd_client.wire import Shard

MAX_PLACES = 10_000
"""Layers whose places are remembered; whoever pushes under ever new names begins anew."""

NUM_PLACES = 2
"""Of a layer in the arena, that are remembered: it is written to one while the other is sent."""


class Outbox:
    """Newest wins per layer, within the arena's memory. `num_replaced` counts unsent snapshots that a newer one of the
    same layer replaced, `num_dropped` those that had to make room for another layer."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.num_replaced = 0
        self.num_dropped = 0
        self._changed = threading.Condition()
        self._orders = count()
        self.reports = Reports(self._changed, self._orders, self._comes_before)
        self._returns = Returns()
        self._places: dict[Key, list[Region]] = {}
        """Where each layer lay last: there again, so that what is copied together stays side by side."""
        self._queue: dict[Key, Snapshot] = {}
        """Writing and pending; a newer snapshot keeps the place of the one it replaces, so that no layer starves."""
        self._sending: Snapshot | None = None
        self._awaiting: dict[Key, Snapshot] = {}
        self._retired: list[Snapshot] = []
        """Nobody wants them any more, but ZeroMQ still holds frames of them."""
        self._victims: list[Snapshot] = []
        """What a push of `_victims_step` may give up for other layers, the last first; some are gone since."""
        self._victims_bytes = 0
        self._victims_step: int | None = None

    # The training thread's side ------------------------------------------------------------------------------------

    def grow(self, wanted_bytes: int, smallest_bytes: int) -> None:
        with self._changed:
            self.arena.grow(wanted_bytes, smallest_bytes)

    def reserve(
        self, layer: str, step: int, num_bytes: int, shape: tuple[int, ...], role: str = "weight", shard: Shard = WHOLE
    ) -> Snapshot | None:
        """A snapshot to write into, or None where no memory can be had. Follow with `commit` or `abandon`."""
        with self._changed:
            key = (layer, role)
            num_returns = self._returns.count(key, step)
            old = self._queue.get(key)
            region = None
            if old is not None:  # unsent: its memory is the best place for its successor, which keeps its turn
                old.written = False
                if old.num_bytes == num_bytes and not old.held():
                    region = old.region
                else:
                    self._free(old)
            region = region or self._place(key, num_bytes) or self._make_room(key, step, num_bytes)
            if region is None:
                self.num_dropped += self._queue.pop(key, None) is not None
                return None
            self.num_replaced += old is not None
            snapshot = Snapshot(
                layer, step, region, shape, role=role, shard=shard, order=next(self._orders), num_returns=num_returns
            )
            self._queue[key] = snapshot
            return snapshot

    def commit(self, snapshot: Snapshot, arrival: Arrival | None = None) -> None:
        """`snapshot` is whole, or is as soon as `arrival` says so: it may be sent then, and an older one that awaited
        its record is not needed any more."""
        with self._changed:
            snapshot.written, snapshot.arrival = True, arrival
            older = self._awaiting.pop(snapshot.key, None)
            if older is not None:
                self._free(older)

    def abandon(self, snapshot: Snapshot, arrival: Arrival | None = None) -> None:
        """Writing failed; until `arrival` is done, a GPU may write to its memory all the same."""
        with self._changed:
            snapshot.arrival = arrival
            if self._queue.get(snapshot.key) is snapshot:
                del self._queue[snapshot.key]
            self._free(snapshot)

    def _place(self, key: Key, num_bytes: int) -> Region | None:
        """Where the layer lay before, if that is free; else where nobody did, else the first free place."""
        places = self._places.get(key, [])
        for place in places:
            if place.num_bytes == num_bytes and (region := self.arena.reserve_again(place)) is not None:
                return region
        region = self.arena.reserve_fresh(num_bytes) or self.arena.reserve(num_bytes)
        if region is not None:
            if len(self._places) >= MAX_PLACES:
                self._places.clear()
            self._places[key] = [region, *places][:NUM_PLACES]
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

    # The link's side -----------------------------------------------------------------------------------------------

    def next_unsent(self) -> Snapshot | None:
        """What to send from: the one begun, else the first in the queue that is whole."""
        with self._changed:
            if self._sending is None:
                self._sending = next(self._whole(), None)
                if self._sending is not None:
                    del self._queue[self._sending.key]
            return self._sending

    def put_back(self, snapshot: Snapshot) -> None:
        """Nothing of `snapshot` could be sent now: make it replaceable again."""
        with self._changed:
            if self._sending is snapshot and snapshot.sent_bytes == 0:
                self._sending = None
                self._requeue([snapshot])

    def sent(self, snapshot: Snapshot, num_bytes: int, tracker: Tracker) -> None:
        """`num_bytes` more of `snapshot` were handed to ZeroMQ."""
        with self._changed:
            snapshot.trackers.append(tracker)
            snapshot.sent_bytes += num_bytes
            if snapshot.sent_bytes < snapshot.num_bytes or self._sending is not snapshot:
                return
            self._sending = None
            newer = self._queue.get(snapshot.key)
            if newer is not None and newer.written:
                self._free(snapshot)
            else:
                self._awaiting[snapshot.key] = snapshot
            self._changed.notify_all()

    def settle(self, layer: str, role: str, step: int, outcome: str = "recorded") -> bool:
        """The daemon has dealt with this snapshot, or report, for good; `outcome` is "recorded", "superseded", or the
        code of a refusal. False if it is not one that was waited for."""
        with self._changed:
            key = (layer, role)
            was_reported = self.reports.settle((layer, role, step))
            snapshot = self._awaiting.get(key)
            if snapshot is not None and snapshot.step == step:
                del self._awaiting[key]
            elif self._sending is not None and (self._sending.key, self._sending.step) == (key, step):
                snapshot, self._sending = self._sending, None
            else:
                return was_reported
            self._free(snapshot)
            self._changed.notify_all()
            return True

    def give_up(self, layer: str, role: str, step: int) -> None:
        """This snapshot cannot be sent."""
        with self._changed:
            self.num_dropped += self.settle(layer, role, step, "unsendable")

    def rewind(self) -> None:
        """A new connection: whatever is not recorded is sent again, from its first byte, before what came later."""
        with self._changed:
            self.reports.rewind()
            again = [*self._awaiting.values(), *([self._sending] if self._sending else [])]
            self._awaiting.clear()
            self._sending = None
            self._requeue(sorted(again, key=lambda snapshot: snapshot.step))

    def purge(self) -> None:
        """Free what ZeroMQ has let go of."""
        with self._changed:
            self._retired = [old for old in self._retired if not self._release(old)]

    # Both ----------------------------------------------------------------------------------------------------------

    @property
    def num_unsent(self) -> int:
        return len(self._queue) + (self._sending is not None) + self.reports.num_unsent

    @property
    def has_retired(self) -> bool:
        return bool(self._retired)

    @property
    def has_arriving(self) -> bool:
        """Something is on its way from a GPU, by a copy that nobody is woken by."""
        with self._changed:
            return any(snapshot.written and not snapshot.arrived() for snapshot in self._queue.values())

    @property
    def settled(self) -> bool:
        """Nothing waits to be sent or recorded."""
        return not self._queue and self._sending is None and not self._awaiting and self.reports.settled

    def wait_settled(self, timeout_seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self.settled, timeout_seconds)

    # Under the lock ------------------------------------------------------------------------------------------------

    def _whole(self) -> Iterator[Snapshot]:
        """What may be sent: of one layer and role, snapshots and reports wait for one another, since a repeat of what
        came before would look like a return to the daemon."""
        return (
            snapshot
            for snapshot in self._queue.values()
            if snapshot.written and snapshot.arrived() and not self.reports.come_before(snapshot.key, snapshot.order)
        )

    def _comes_before(self, key: Key, order: int) -> bool:
        """Whether a snapshot came before, and is not dealt with."""
        sending = self._sending if self._sending is not None and self._sending.key == key else None
        waiting = (self._queue.get(key), sending, self._awaiting.get(key))
        return any(snapshot is not None and snapshot.order < order for snapshot in waiting)

    def _requeue(self, again: list[Snapshot]) -> None:
        """Put `again` in front of the queue, except those that a newer one has overtaken."""
        front: dict[Key, Snapshot] = {}
        for snapshot in again:
            snapshot.sent_bytes = 0
            overtaken = snapshot if snapshot.key in self._queue else front.get(snapshot.key)
            if overtaken is not None:
                self._free(overtaken)
            if overtaken is not snapshot:
                front[snapshot.key] = snapshot
        self._queue = {**front, **self._queue}

    def _free(self, snapshot: Snapshot) -> None:
        if not self._release(snapshot):
            self._retired.append(snapshot)

    def _release(self, snapshot: Snapshot) -> bool:
        if snapshot.held():
            return False
        self.arena.release(snapshot.region)
        return True
