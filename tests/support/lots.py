"""Pushes as lots, of tensors on the host, into an outbox without an outlet."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from rankd_client.arena import Arena, Memory
from rankd_client.lots import Layout, Lot
from rankd_client.outbox import Outbox
from rankd_client.watch import Selection, Watched, watch

SIZES = (3, 64, 40)


@dataclass
class Arrival:
    done: bool = True
    dtype: str | None = None


@dataclass
class Tracker:
    done: bool = True


def items_of(sizes: tuple[int, ...] = SIZES) -> list[Watched]:
    items, _ = watch({f"w{i}": torch.zeros(size, 2) for i, size in enumerate(sizes)}, Selection("float32"))
    return items


def outbox_of(num_bytes: int) -> Outbox:
    outbox = Outbox(Arena(num_bytes, lambda size: Memory(memoryview(bytearray(size)))))
    outbox.grow(num_bytes, 64)
    return outbox


def put(outbox: Outbox, layout: Layout, step: int, arrival: Arrival | None = None) -> Lot | None:
    """As a lot; None: there is no place for one."""
    lot = outbox.reserve_lot(layout, step)
    if lot is not None:
        for region in layout.regions(lot.region):
            region.view[:] = bytes([step % 256]) * region.num_bytes
        outbox.commit_lot(lot, arrival or Arrival())
    return lot


def take(outbox: Outbox) -> list[tuple[str, int, bytes]]:
    """What is sent, now."""
    taken = []
    while (snapshot := outbox.next_unsent()) is not None:
        taken.append((snapshot.layer, snapshot.step, bytes(snapshot.region.view)))
        outbox.sent(snapshot, snapshot.num_bytes, Tracker())
    return taken
