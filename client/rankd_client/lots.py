"""All that a push takes, as one: where the same tensors go again and again, they are given memory, and handed to the
link, at once. What each of them needs is done on the link's thread, not while the training waits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rankd_client.arena import Block, Region, aligned
from rankd_client.snapshot import Arrival, Key, Snapshot
from rankd_client.watch import Watched

MAX_LAID = 16
"""Places that a layout remembers: a push is written to one while another is sent."""


def ids_of(items: Sequence[Watched]) -> tuple[int, ...]:
    """By which it is known that they are the same objects, as long as they live."""
    return tuple([id(item) for item in items])


class Layout:
    """Tensors side by side, each from a multiple of the alignment on. `num_bytes`: of all, with what aligns them."""

    def __init__(self, items: Sequence[Watched]) -> None:
        self.items = tuple(items)
        self.ids = ids_of(items)
        self.keys = frozenset((item.name, item.role) for item in items)
        self.num_bytes = sum(aligned(item.num_bytes) for item in items)
        self._laid: dict[tuple[Block, int], tuple[Region, ...]] = {}

    def regions(self, whole: Region) -> tuple[Region, ...]:
        """Of each tensor, in a region of `num_bytes`."""
        place = whole.block, whole.start
        if place not in self._laid:
            if len(self._laid) >= MAX_LAID:
                self._laid.clear()
            self._laid[place] = tuple(self._lay(whole))
        return self._laid[place]

    def _lay(self, whole: Region) -> Iterator[Region]:
        start = whole.start
        for item in self.items:
            yield Region(whole.block, start, item.num_bytes, aligned(item.num_bytes))
            start += aligned(item.num_bytes)


@dataclass(slots=True, eq=False)
class Lot:
    """A layout's snapshots at one step. `arrival`: by whom it is told that all are whole."""

    layout: Layout
    step: int
    region: Region
    order: int
    arrival: Arrival | None = None

    def __len__(self) -> int:
        return len(self.layout.items)

    def held(self) -> bool:
        """Whether a GPU may still write to it."""
        return self.arrival is not None and not self.arrival.done

    def unpack(self) -> Iterator[tuple[Key, Snapshot]]:
        """Each by itself."""
        for item, region in zip(self.layout.items, self.layout.regions(self.region), strict=True):
            snapshot = Snapshot(
                item.name, self.step, region, item.shape, item.dtype, item.source_dtype, item.role, item.shard,
                written=True, arrival=self.arrival, order=self.order,
            )  # fmt: skip
            yield snapshot.key, snapshot
