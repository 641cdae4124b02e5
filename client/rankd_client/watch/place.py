"""Which part of which matrix a process of a job holds: what adapters tell of a tensor."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import index
from typing import TYPE_CHECKING, Any, Protocol

from rankd_client.wire import Shard, disjoint
from rankd_client.wire.limits import MAX_PIECES

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Place:
    """A tensor's place in the model as the whole job sees it.

    `tensor` has this process's elements, plain (no DTensor), as many as `shard` says of the whole `shape` and in its
    order; without pieces it is the whole. Who holds nothing says so, by an empty tensor and an empty piece, because the
    sizes of all layers decide at which steps each of them goes.

    `replica` counts the processes that hold the same elements: 0 pushes them. None: every process of the job holds
    them, and process 0 pushes. `num_shards` is how often the largest part goes into the whole, the same number in every
    process. `group` names the processes that share the matrix, alike in each of them: layers of one group are known to
    the same processes; "" where the whole is in one. `decode`, if there is one, makes the elements from `tensor`.
    """

    name: str
    tensor: torch.Tensor = field(repr=False)
    shape: tuple[int, ...]
    shard: Shard = field(default_factory=Shard)
    replica: int | None = None
    num_shards: int = 1
    group: str = ""
    decode: Callable[[Any], torch.Tensor] | None = field(default=None, repr=False)


class Adapter(Protocol):
    """Knows a framework's way to spread a model over processes. Calls no collective, and waits for nobody."""

    def place(self, name: str, tensor: Any) -> Place | str | None:
        """The place of a parameter that this process calls `name`; a reason to skip it; None: not one of mine."""
        ...


class CheckedAdapter:
    """Somebody else's adapter: a place that cannot be is a reason to skip the parameter."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter

    def place(self, name: str, tensor: Any) -> Place | str | None:
        found = self._adapter.place(name, tensor)
        if not isinstance(found, Place):
            return found
        try:
            found = _of_integers(found)
        except (TypeError, ValueError):
            return f"its adapter's place: {found.shape}, {found.shard}: expected integers"
        wrong = _fault(found)
        return found if wrong is None else f"its adapter's place: {wrong}"


def _of_integers(place: Place) -> Place:
    """The same, of Python's own: what counts as one, such as numpy's, is none in a message. Raises TypeError for what
    does not, ValueError where a piece has another number of them."""
    shard = place.shard
    rectangles = tuple((index(r0), index(r1), index(c0), index(c1)) for r0, r1, c0, c1 in shard.rectangles)
    ranges = tuple((index(start), index(end)) for start, end in shard.ranges)
    return replace(
        place,
        shape=tuple(map(index, place.shape)),
        shard=Shard(rectangles, ranges, index(shard.replica)),
        replica=None if place.replica is None else index(place.replica),
        num_shards=index(place.num_shards),
    )


def _fault(place: Place) -> str | None:
    shape, shard = place.shape, place.shard
    rows, cols, pieces = shape[0] if shape else 1, math.prod(shape[1:]), shard.rectangles or shard.ranges
    if min(shape, default=0) < 0:
        return f"shape {shape}"
    if len(pieces) > MAX_PIECES or (shard.rectangles and shard.ranges):
        return f"{len(pieces)} pieces; expected at most {MAX_PIECES}, all rectangles or all ranges"
    if place.tensor.numel() != shard.num_elements(shape):
        return f"{shard.num_elements(shape)} elements; the tensor has {place.tensor.numel()}"
    if place.tensor.numel():
        if not all(0 <= r0 < r1 <= rows and 0 <= c0 < c1 <= cols for r0, r1, c0, c1 in shard.rectangles):
            return f"a rectangle is empty or outside {rows} x {cols}"
        if not all(0 <= start < end <= rows * cols for start, end in shard.ranges):
            return f"a range is empty or outside {rows * cols} elements"
        if not disjoint(shard.rectangles or ((0, 1, *each) for each in shard.ranges)):
            return "two pieces overlap"
    return None if place.num_shards >= 1 else f"num_shards={place.num_shards}; expected at least 1"
