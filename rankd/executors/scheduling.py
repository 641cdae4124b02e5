"""Who takes what: waiting work and the devices' free memory → what a device that is idle takes next. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from rankd.records import Tier
from rankd.weights import WORKING_COPIES

MAX_BATCH = 32
"""In the norms tier a batch of 16 matrices cost a third of 16 alone, one of 32 hardly less."""

MAX_BATCH_BYTES = 1 << 30
"""Of snapshots: a batch holds up nobody for much longer than its largest matrix would."""

MAX_BATCH_SECONDS = 0.25
"""For the same reason. Exact solves gain nothing from company: a GPU does one after the other."""

OVERHEAD_SECONDS: Mapping[Tier, float] = {"norms": 0.002, "estimate": 0.015, "exact": 0.0}
"""What a batch costs by itself: 250 launches, or some 2,000, whatever its size; and Python launches for one device at a
time. A batch is not cut shorter than this to even out the devices' ends."""

MEMORY_SHARE = 0.25
"""Of a device's free memory, for a batch's snapshots, and as much for working on them: somebody else may take some."""

USABLE = 0.9
"""Of the free memory, for one matrix with what it takes to work on it: some of it lies in pieces."""

MAX_LOST = 2
"""Devices that may be lost at a piece of work until it is left to the CPU: one breaks for reasons of its own, two of
them may have been brought down by it."""

_GRAM_COPIES = 4
"""Of float64: product, what the solver destroys, and room to work in."""
_LONG = 1 << 14
"""Elements of the long side that are widened to float64 at once."""


@dataclass(frozen=True, slots=True)
class Need:
    """What scheduling has to know of a piece of work."""

    kind: Hashable
    """Tier, shape and dtype: only what is alike is measured together, so a batch of several kinds gains nothing."""
    tier: Tier
    seconds: float
    """That it will take about; on one device as on another."""
    num_bytes: int
    """To be copied to the device."""
    room: int
    """Bytes that it takes there by itself, with what it takes to work on it."""
    turn: int = 0
    """Nothing leads a batch before all of earlier turns is taken: what is small does not wait for ever for others to be
    the largest."""
    tried: frozenset[int] = frozenset()
    """Devices on which there was no room after all."""
    num_lost: int = 0
    """Devices that were lost at it."""
    off_devices: bool = False
    """Only the CPU may do: no method converged."""


def room_for(rows: int, cols: int, tier: Tier, num_bytes: int) -> int:
    """Bytes on a device for a matrix, or the largest of a weight that has `num_bytes`."""
    short, long = sorted((rows, cols))
    if tier != "exact":
        return num_bytes + WORKING_COPIES * 4 * short * long
    return num_bytes + max(8 * short * (min(long, _LONG) + _GRAM_COPIES * short), 2 * 4 * short * long)


def may_take(need: Need, device: int, free: Mapping[int, float]) -> bool:
    """Whether `device` is one of those that may. `free`: bytes of each that is left; what is known of one that is busy
    counts too, for waiting for it is better than the CPU. Where there is room on none, as far as that can be told, the
    one with most tries."""
    if not _is_for_devices(need) or device not in free or device in need.tried:
        return False
    if fits(need, free[device]):
        return True
    left = {name: num_bytes for name, num_bytes in free.items() if name not in need.tried}
    somewhere = any(fits(need, num_bytes) for num_bytes in left.values())
    return not somewhere and not need.tried and device == max(left, key=lambda name: left[name])


def fits(need: Need, free_bytes: float) -> bool:
    return need.room <= USABLE * free_bytes


def take(waiting: Sequence[Need], device: int, free: Mapping[int, float]) -> list[int]:
    """Places in `waiting` (oldest first) of what `device`, which is idle, takes as a batch; none where all of it is for
    others.

    The oldest leads where there is one device. Of several the largest does, and a batch is at most one device's share
    of all that waits: batches become smaller as the end comes near, and nobody begins a large one when the others are
    done (guided self-scheduling, Polychronopoulos & Kuck 1987; largest first, Graham 1969)."""
    mine = [place for place, need in enumerate(waiting) if may_take(need, device, free)]
    if not mine:
        return []
    turn = min(waiting[place].turn for place in mine)
    lead = next(place for place in mine if waiting[place].turn == turn)
    if len(free) > 1:
        lead = max((place for place in mine if waiting[place].turn == turn), key=lambda at: waiting[at].seconds)
    first = waiting[lead]
    share = sum(need.seconds for need in waiting if _is_for_devices(need)) / len(free) if len(free) > 1 else math.inf
    max_seconds = min(MAX_BATCH_SECONDS, max(share, OVERHEAD_SECONDS[first.tier]))
    max_bytes = min(MAX_BATCH_BYTES, MEMORY_SHARE * free[device])
    batch, num_bytes, seconds = [lead], first.num_bytes, first.seconds
    for place in mine:
        need = waiting[place]
        if place == lead or need.kind != first.kind:
            continue
        num_bytes, seconds = num_bytes + need.num_bytes, seconds + need.seconds
        if len(batch) == MAX_BATCH or num_bytes > max_bytes or seconds > max_seconds:
            break
        batch.append(place)
    return batch


def take_for_cpu(waiting: Sequence[Need], free: Mapping[int, float]) -> list[int]:
    """The place of the oldest that no device may take."""
    places = (place for place, need in enumerate(waiting) if not any(may_take(need, name, free) for name in free))
    return list(places)[:1]


def _is_for_devices(need: Need) -> bool:
    return not need.off_devices and need.num_lost < MAX_LOST
