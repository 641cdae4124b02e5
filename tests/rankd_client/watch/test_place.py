"""Places that somebody's adapter tells: one that cannot be costs its layer, and says why."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rankd_client import Place
from rankd_client.watch import Selection, watch
from rankd_client.wire import Chunk, Shard, decode, encode

WHOLE, PART = torch.ones(4, 6), torch.ones(2, 6)


class Told:
    def __init__(self, place: Any) -> None:
        self._place = place

    def place(self, name: str, tensor: Any) -> Any:
        return self._place if name == "w" else None


def look(place: Any) -> Any:
    return watch({"w": WHOLE, "other": WHOLE.clone()}, Selection(), [Told(place)])


def rectangles(*each: tuple[int, int, int, int]) -> Shard:
    return Shard(rectangles=each)


@pytest.mark.parametrize(
    ("place", "reason"),
    [
        (Place("w", PART, (4, 6)), "24 elements; the tensor has 12"),
        (Place("w", PART, (4, 6), rectangles((3, 5, 0, 6))), "a rectangle is empty or outside 4 x 6"),
        (Place("w", PART, (4, 6), rectangles((0, 2, 0, 6), (1, 1, 0, 6))), "a rectangle is empty or outside 4 x 6"),
        (Place("w", WHOLE, (4, 6), rectangles((0, 2, 0, 6), (1, 3, 0, 6))), "two pieces overlap"),
        (Place("w", PART, (4, 6), Shard(ranges=((13, 25),))), "a range is empty or outside 24 elements"),
        (
            Place("w", PART, (4, 6), Shard(((0, 1, 0, 6),), ((6, 12),))),
            "expected at most 1024, all rectangles or all ranges",
        ),
        (Place("w", WHOLE, (-4, -6)), "shape (-4, -6)"),
        (Place("w", WHOLE, (4.0, 6.0)), "(4.0, 6.0)"),  # type: ignore[arg-type]
        (Place("w", PART, (4, 6), Shard(((0, 2, 0),))), "expected integers"),  # type: ignore[arg-type]
        (Place("w", PART, (2, 6), num_shards=0), "num_shards=0; expected at least 1"),
    ],
)
def test_a_place_that_cannot_be(place: Place, reason: str) -> None:
    watched, skipped = look(place)
    assert [item.name for item in watched] == ["other"]
    assert skipped["w"].startswith("its adapter's place: ") and reason in skipped["w"]


def test_a_reason_and_a_name_and_a_fault() -> None:
    assert look("not now")[1] == {"w": "not now"}
    assert [item.name for item in look(Place("global", WHOLE, (4, 6)))[0]] == ["global", "other"]
    assert look(Place("other", WHOLE, (4, 6)))[1].keys() == {"w", "other"}  # both are called so
    assert look(Place("w", None, (4, 6)))[1] == {"w": "cannot be read: AttributeError"}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "shard",
    [
        Shard(rectangles=(tuple(np.array([2, 4, 0, 6])),)),
        Shard(ranges=(tuple(np.array([12, 24])),)),
        Shard(rectangles=np.array([[2, 4, 0, 6]])),  # type: ignore[arg-type]
    ],
)
def test_integers_of_numpy_can_be_sent(shard: Shard) -> None:
    shape = tuple(np.array([4, 6]))
    place = Place("w", PART, shape, shard, replica=np.int64(0), num_shards=np.int64(2))  # type: ignore[arg-type]
    item = look(place)[0][0]
    assert item.num_bytes == 24
    chunk = Chunk("w", 1, item.dtype, item.shape, item.num_bytes, 0, bytes(24), shard=item.shard)
    assert decode(encode(chunk)) == chunk


def test_a_process_that_holds_nothing_knows_the_layer_all_the_same() -> None:
    place = Place("w", torch.ones(0), (4, 6), Shard(ranges=((24, 24),)), replica=0, num_shards=2, group="job")
    item = look(place)[0][0]
    assert (item.name, item.num_bytes, item.turn_bytes, item.group) == ("w", 0, 24, "job")


def test_no_part_decides_alone_whether_it_overflows_in_float16() -> None:
    """One part of a layer may hold zeros alone, another what overflows: all are to be of one dtype."""

    class Half:
        def place(self, name: str, tensor: torch.Tensor) -> Place:
            return Place(name, tensor, (8, 4), Shard(rectangles=((0, 4, 0, 4),)), replica=0, num_shards=2)

    weights = {"w": torch.zeros(4, 4)}
    ((part,), _) = watch(weights, Selection("float16"), (Half(),))
    ((whole,), _) = watch(weights, Selection("float16"))
    assert (part.dtype, whole.dtype) == ("bfloat16", "float16")
    ((own,), _) = watch({"w": torch.zeros(4, 4, dtype=torch.float16)}, Selection("float16"), (Half(),))
    assert own.dtype == "float16", "nothing is rounded"
