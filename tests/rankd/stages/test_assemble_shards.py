"""Matrices in pieces from several processes."""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from chunks import FLOATS, HALF, A, B, assembler, chunk, cut, ones
from hypothesis import given, settings
from hypothesis import strategies as st

from rankd.records import Snapshot
from rankd.shards import MAX_PIECES_PER_LAYER
from rankd_client.wire import DTYPES, Shard, WireError

Rectangle = tuple[int, int, int, int]


@st.composite
def partitions(draw: st.DrawFn) -> tuple[tuple[int, int], list[Shard]]:
    """A matrix's shape, and disjoint shards of one kind that cover it."""
    rows, cols = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    pieces: list[Any]
    flat = draw(st.booleans())
    if flat:
        marks = sorted({0, rows * cols, *draw(st.lists(st.integers(0, rows * cols), max_size=6))})
        pieces = list(pairwise(marks))
    else:
        pieces = _guillotine(draw, (0, rows, 0, cols), 3)
    pieces = draw(st.permutations(pieces))
    owners = draw(st.lists(st.integers(0, 3), min_size=len(pieces), max_size=len(pieces)))
    held = [tuple(p for p, owner in zip(pieces, owners, strict=True) if owner == n) for n in range(4)]
    return (rows, cols), [Shard(ranges=p) if flat else Shard(rectangles=p) for p in held if p]


def _guillotine(draw: st.DrawFn, piece: Rectangle, depth: int) -> list[Rectangle]:
    r0, r1, c0, c1 = piece
    down, across = [(at, None) for at in range(r0 + 1, r1)], [(None, at) for at in range(c0 + 1, c1)]
    if not depth or not (down or across) or draw(st.booleans()):
        return [piece]
    row, col = draw(st.sampled_from(down + across))
    parts = [(r0, row, c0, c1), (row, r1, c0, c1)] if row else [(r0, r1, c0, col), (r0, r1, col, c1)]
    return [small for part in parts for small in _guillotine(draw, part, depth - 1)]


def _payload(matrix: np.ndarray, shard: Shard) -> bytes:
    parts = [matrix[r0:r1, c0:c1].tobytes() for r0, r1, c0, c1 in shard.rectangles]
    return b"".join(parts + [matrix.reshape(-1)[start:end].tobytes() for start, end in shard.ranges])


@given(partitions(), st.data())
@settings(max_examples=150, deadline=None)
def test_shards_in_any_order_equal_the_matrix(case: tuple[tuple[int, int], list[Shard]], data: st.DataObject) -> None:
    shape, shards = case
    dtype = data.draw(st.sampled_from(FLOATS))
    item_bytes = DTYPES[dtype].item_bytes
    matrix = np.arange(1, math.prod(shape) + 1).astype(f"u{item_bytes}").reshape(shape)  # denormals, bit by bit
    assemble = assembler()
    queues = {}
    for number, shard in enumerate(shards):
        size = item_bytes * data.draw(st.integers(1, 5))
        queues[bytes([number])] = list(cut(_payload(matrix, shard), shape, size, shard=shard, dtype=dtype))
    taken: Snapshot | None = None
    while queues:
        assert taken is None
        session = data.draw(st.sampled_from(sorted(queues)))
        taken = assemble.add("r", session, queues[session].pop(0), 0.0).snapshot
        queues = {name: queue for name, queue in queues.items() if queue}
    assert taken is not None
    np.testing.assert_array_equal(taken.data.view(matrix.dtype).reshape(shape), matrix)
    assert assemble.num_bytes == 0
    assert assemble.settle((*taken.key, taken.step)) == {bytes([number]) for number in range(len(shards))}


def test_other_replicas_are_taken_and_ignored() -> None:
    assemble = assembler()
    added = assemble.add("r", A, chunk(ones(4), (2, 2), shard=Shard(replica=1)), 0.0)
    assert (added.snapshot, assemble.counters["num_repeats"]) == (None, 1)
    assert assemble.num_bytes == 0


def test_a_shard_that_is_given_up_takes_its_nan_along() -> None:
    assemble = assembler()
    upper, lower = Shard(rectangles=((0, 1, 0, 2),)), Shard(rectangles=((1, 2, 0, 2),))
    nan = np.full(1, np.nan, np.float32).tobytes()
    assemble.add("r", B, chunk(ones(1), (2, 2), shard=lower), 0.0)
    assemble.add("r", A, chunk(nan, (2, 2), shard=upper), 0.0)
    assemble.add("r", A, chunk(ones(2), (2, 2), shard=upper), 0.0)
    taken = assemble.add("r", B, chunk(ones(1), (2, 2), shard=lower, offset=4), 0.0).snapshot
    assert taken is not None and taken.finite


@pytest.mark.parametrize("kind", ["ranges", "rectangles"])
@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(0, 11), st.integers(1, 4)), max_size=12))
@settings(max_examples=60, deadline=None)
def test_a_shard_fits_where_it_overlaps_none_that_is_open(kind: str, begun: list[tuple[str, int, int]]) -> None:
    """Of a 4 × 4 matrix, begun anew by four sessions now and then."""
    assemble = assembler()
    held: dict[str, set[int]] = {}
    for session, start, size in begun:
        elements = set(range(start, start + size))
        if kind == "ranges":
            shard = Shard(ranges=((start, start + size),))
        else:  # a column's part
            elements = {(start % 4 + row) * 4 + start // 4 for row in range(min(size, 4 - start % 4))}
            shard = Shard(rectangles=((start % 4, start % 4 + len(elements), start // 4, start // 4 + 1),))
        held.pop(session, None)
        fits = not any(elements & other for other in held.values())
        payload = ones(len(elements))
        try:
            assemble.add("r", session.encode() * 16, chunk(payload, (4, 4), shard=shard), 0.0)
        except WireError as error:
            assert error.code == "shard_conflict" and not fits
        else:
            assert fits
            held[session] = elements
        assert assemble.num_bytes == 4 * sum(map(len, held.values()))


OTHERS = {
    "another shape": chunk(ones(2), (4, 1), shard=Shard(ranges=((2, 4),))),
    "another dtype": chunk(bytes(4), (2, 2), shard=Shard(ranges=((2, 4),)), dtype="float16"),
    "another kind": chunk(ones(2), (2, 2), shard=Shard(rectangles=((1, 2, 0, 2),))),
    "the whole": chunk(ones(4), (2, 2)),
    "one element in common": chunk(ones(2), (2, 2), shard=Shard(ranges=((1, 3),))),
    "the same": chunk(ones(2), (2, 2), shard=HALF),
}


@pytest.mark.parametrize("other", OTHERS)
def test_shards_that_disagree_are_refused(other: str) -> None:
    assemble = assembler()
    assemble.add("r", A, chunk(ones(1), (2, 2), shard=HALF), 0.0)
    with pytest.raises(WireError, match="shard_conflict"):
        assemble.add("r", B, OTHERS[other], 0.0)
    assert assemble.num_bytes == 8


def test_a_layer_has_room_for_so_many_pieces() -> None:
    assemble = assembler()
    width = 1024
    for number in range(MAX_PIECES_PER_LAYER // width):
        start = 2 * width * number
        shard = Shard(ranges=tuple((start + 2 * i, start + 2 * i + 1) for i in range(width)))
        assemble.add("r", number.to_bytes(16, "big"), chunk(ones(1), (1 << 10, 1 << 10), shard=shard), 0.0)
    with pytest.raises(WireError, match="assembly_full"):
        assemble.add("r", A, chunk(ones(1), (1 << 10, 1 << 10), shard=Shard(ranges=((1, 2),))), 0.0)
