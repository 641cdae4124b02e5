"""Snapshots between the training thread, which writes them, and the link's thread, which sends them.

Per (layer, role) there is at most one of each: writing or pending (in the queue), sending, awaiting (sent whole, not
yet recorded). A newer one takes the place of an older one as soon as it is whole. A region goes back to the arena only
when ZeroMQ holds no frame of it any more. The lock is held for bookkeeping alone, never while bytes are copied or sent.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Container, Iterator
from itertools import count

from rankd_client.arena import Arena, Region
from rankd_client.lots import Layout, Lot
from rankd_client.reports import Reports
from rankd_client.returns import Returns
from rankd_client.rightofway import RightOfWay
from rankd_client.room import Room
from rankd_client.snapshot import WHOLE, Arrival, Key, Snapshot, Tracker
from rankd_client.wire import Shard


class Outbox:
    """Newest wins per layer, within the arena's memory. `num_replaced` counts unsent snapshots that a newer one of the
    same layer replaced, `num_dropped` those that had to make room for another layer."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self.num_replaced = 0
        self.num_waiting = 0
        """Threads, until all is settled."""
        self.right_of_way = RightOfWay()
        self._changed = threading.Condition()
        self._orders = count()
        behind = weakref.WeakMethod(self._comes_before)  # or nobody but gc would give the arena back
        self.reports = Reports(self._changed, self._orders, lambda *of: bool((ask := behind()) and ask(*of)))
        self._returns = Returns()
        self._queue: dict[Key, Snapshot] = {}
        """Writing and pending; a newer snapshot keeps the place of the one it replaces, so that no layer starves."""
        self._sending: Snapshot | None = None
        self._awaiting: dict[Key, Snapshot] = {}
        self._lot: Lot | None = None
        """The newest push, while nobody has asked for anything of it."""
        self._room = Room(arena, self._queue, self._awaiting)

    @property
    def num_dropped(self) -> int:
        return self._room.num_dropped

    # The training thread's side ------------------------------------------------------------------------------------

    def grow(self, wanted_bytes: int, smallest_bytes: int) -> None:
        with self._changed:
            self.arena.grow(wanted_bytes, smallest_bytes)

    def reserve(
        self, layer: str, step: int, num_bytes: int, shape: tuple[int, ...], role: str = "weight", shard: Shard = WHOLE
    ) -> Snapshot | None:
        """A snapshot to write into, or None where no memory can be had. Follow with `commit` or `abandon`."""
        with self._changed:
            self._unpack()
            key = (layer, role)
            num_returns = self._returns.count(key, step)
            old = self._queue.get(key)
            region = self._room.find(key, step, num_bytes) if old is None else self._replace(old, step, num_bytes)
            if region is None:
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
            self._overtake(snapshot.key)

    def abandon(self, snapshot: Snapshot, arrival: Arrival | None = None) -> None:
        """Writing failed; until `arrival` is done, a GPU may write to its memory all the same."""
        with self._changed:
            snapshot.arrival = arrival
            if self._queue.get(snapshot.key) is snapshot:
                del self._queue[snapshot.key]
            self._room.free(snapshot)

    def reserve_lot(self, layout: Layout, step: int) -> Lot | None:
        """Memory for all of a push at once; None where it has to be had layer by layer, since some are unsent or there
        is no such place. Follow with `commit_lot` or `abandon_lot`."""
        with self._changed:
            self._unpack()
            region = None if self._queue else self._room.find_side_by_side(layout.keys, layout.num_bytes)
            return None if region is None else Lot(layout, step, region, next(self._orders))

    def commit_lot(self, lot: Lot, arrival: Arrival) -> None:
        """It is whole as soon as `arrival` says so."""
        with self._changed:
            lot.arrival = arrival
            self._lot = lot

    def abandon_lot(self, lot: Lot, arrival: Arrival) -> None:
        """Writing failed, or Ctrl-C came before it was committed; until `arrival` is done, a GPU may write to its
        memory all the same."""
        with self._changed:
            if lot.arrival is None:  # else it was
                lot.arrival = arrival
                self._room.free(lot)
                for item in lot.layout.items:  # it was chosen to go, as in the other processes
                    self._returns.count((item.name, item.role), lot.step)

    # The link's side -----------------------------------------------------------------------------------------------

    def next_unsent(self) -> Snapshot | None:
        """What to send from: the one begun, else the first in the queue that is whole. A push that is under way ends
        first: until it is taken here, what is unsent can be replaced by what is newer."""
        self.right_of_way.give()
        with self._changed:
            self._unpack()
            if self._sending is None:
                self._sending = next(self._whole(), None)
                if self._sending is not None:
                    del self._queue[self._sending.key]
            return self._sending

    def put_back(self, snapshot: Snapshot) -> None:
        """Nothing of `snapshot` could be sent now: make it replaceable again."""
        with self._changed:
            if self._sending is snapshot and snapshot.sent_bytes == 0:
                self._unpack()
                self._sending = None
                self.num_replaced += snapshot.key in self._queue
                self._requeue([snapshot])

    def sent(self, snapshot: Snapshot, num_bytes: int, tracker: Tracker) -> None:
        """`num_bytes` more of `snapshot` were handed to ZeroMQ."""
        with self._changed:
            snapshot.trackers.append(tracker)
            snapshot.sent_bytes += num_bytes
            if snapshot.sent_bytes < snapshot.num_bytes or self._sending is not snapshot:
                return
            self._sending = None
            self._unpack()
            newer = self._queue.get(snapshot.key)
            if newer is not None and newer.written:
                self._room.free(snapshot)
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
            self._room.free(snapshot)
            self._changed.notify_all()
            return True

    def give_up(self, layer: str, role: str, step: int) -> None:
        """This snapshot cannot be sent."""
        with self._changed:
            self._room.num_dropped += self.settle(layer, role, step, "unsendable")

    def rewind(self) -> None:
        """A new connection: whatever is not recorded is sent again, from its first byte, before what came later."""
        self.reports.rewind()
        self.take_back()

    def take_back(self, of: Container[tuple[str, str, int]] | None = None) -> None:
        """Snapshots that were sent, all of them or those of these (layer, role, step), are unsent again."""
        with self._changed:
            self._unpack()
            sent = [*self._awaiting.values(), *([self._sending] if self._sending else [])]
            again = [each for each in sent if of is None or (*each.key, each.step) in of]
            for each in again:
                self._awaiting.pop(each.key, None)
            self._sending = None if self._sending in again else self._sending
            self._requeue(sorted(again, key=lambda snapshot: snapshot.step))

    def purge(self) -> None:
        """Free what ZeroMQ has let go of."""
        with self._changed:
            self._room.purge()

    # Both ----------------------------------------------------------------------------------------------------------

    @property
    def num_unsent(self) -> int:
        num_packed = len(lot) if (lot := self._lot) is not None else 0
        return num_packed + len(self._queue) + (self._sending is not None) + self.reports.num_unsent

    @property
    def has_retired(self) -> bool:
        return self._room.has_retired

    @property
    def has_arriving(self) -> bool:
        """Something is on its way from a GPU, by a copy that nobody is woken by."""
        with self._changed:
            self._unpack()
            return any(snapshot.written and not snapshot.arrived() for snapshot in self._queue.values())

    @property
    def settled(self) -> bool:
        """Nothing waits to be sent or recorded."""
        has_any = self._lot is not None or self._queue or self._sending is not None or self._awaiting
        return not has_any and self.reports.settled

    def wait_settled(self, timeout_seconds: float, wake: Callable[[], None] = lambda: None) -> bool:
        """`wake` has whoever deals with the rest do so at once."""
        with self._changed:
            self.num_waiting += 1
            try:
                wake()
                return self._changed.wait_for(lambda: self.settled, timeout_seconds)
            finally:
                self.num_waiting -= 1

    # Under the lock ------------------------------------------------------------------------------------------------

    def _replace(self, old: Snapshot, step: int, num_bytes: int) -> Region | None:
        """Memory for the successor of an unsent one, which keeps its turn: its own is the best place. While somebody
        holds that and there is no other, the old one stays: rather it than neither."""
        was_written, old.written = old.written, False
        is_held = old.held()
        if not is_held and old.num_bytes == num_bytes:
            return old.region
        if not is_held:
            self._room.free(old)
        region = self._room.find(old.key, step, num_bytes)
        if is_held and region is None:
            old.written = was_written
        elif is_held:
            self._room.free(old)
        elif region is None:
            self._room.num_dropped += 1
            del self._queue[old.key]
        return region

    def _unpack(self) -> None:
        """The newest push becomes what others are: snapshots in the queue. Older ones of its layers are there if they
        came back since its memory was reserved: put back, or to be sent anew."""
        if (lot := self._lot) is None:
            return
        for key, snapshot in lot.unpack():
            older = self._queue.get(key)
            if older is not None and older.order == lot.order:
                continue  # Ctrl-C came while it was unpacked
            snapshot.num_returns = self._returns.count(key, lot.step)
            self._overtake(key)
            self._room.lies(key, snapshot.region)
            self._queue[key] = snapshot
            if older is not None:
                self._room.free(older)
                self.num_replaced += 1
        self._lot = None  # now: nobody who does not lock may find nothing in between

    def _overtake(self, key: Key) -> None:
        """There is a newer one, whole: an older one that awaits its record is not needed any more."""
        older = self._awaiting.pop(key, None)
        if older is not None:
            self._room.free(older)

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
        self._unpack()
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
                self._room.free(overtaken)
            if overtaken is not snapshot:
                front[snapshot.key] = snapshot
        front |= self._queue
        self._queue.clear()  # and not another mapping: others have this one
        self._queue |= front
