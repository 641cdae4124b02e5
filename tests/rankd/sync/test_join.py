"""Matrices out of parts: whatever the cut, the bytes are those of the whole."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from spooled import chunk_of

from rankd.sync.join import are_whole, joined
from rankd_client.wire import DTYPES, Shard

ROWS, COLS = 6, 10


def whole_of(dtype: str, shape: tuple[int, ...] = (ROWS, COLS)) -> bytes:
    num_bytes = DTYPES[dtype].num_bytes(ROWS * COLS, shape)
    return np.random.default_rng(1).integers(0, 256, num_bytes, np.uint8).tobytes()


def part_of(whole: bytes, shard: Shard, dtype: str) -> bytearray:
    """The shard's bytes, element by element."""
    if DTYPES[dtype].scaled:
        width = len(whole) // ROWS
        return bytearray(b"".join(whole[r0 * width : r1 * width] for r0, r1, _, _ in shard.rectangles))
    size = DTYPES[dtype].item_bytes
    numbers = [n for start, end in shard.ranges for n in range(start, end)]
    numbers += [r * COLS + c for r0, r1, c0, c1 in shard.rectangles for r in range(r0, r1) for c in range(c0, c1)]
    return bytearray(b"".join(whole[n * size : (n + 1) * size] for n in numbers))


cuts = st.sets(st.integers(1, ROWS * COLS - 1), max_size=6).map(lambda at: [0, *sorted(at), ROWS * COLS])


@st.composite
def shards(draw: st.DrawFn) -> list[Shard]:
    """Ranges or rectangles that cover the matrix, dealt to up to three processes."""
    if draw(st.booleans()):
        at = draw(cuts)
        pieces = draw(st.permutations(list(pairwise(at))))
        hands = [draw(st.integers(0, 2)) for _ in pieces]
        return [Shard(ranges=mine) for hand in range(3) if (mine := _dealt(pieces, hands, hand))]
    rows = [0, *sorted(draw(st.sets(st.integers(1, ROWS - 1), max_size=2))), ROWS]
    cols = [0, *sorted(draw(st.sets(st.integers(1, COLS - 1), max_size=2))), COLS]
    grid = [(r0, r1, c0, c1) for r0, r1 in pairwise(rows) for c0, c1 in pairwise(cols)]
    pieces = draw(st.permutations(grid))
    hands = [draw(st.integers(0, 2)) for _ in pieces]
    return [Shard(rectangles=mine) for hand in range(3) if (mine := _dealt(pieces, hands, hand))]


def _dealt(pieces: list[tuple[int, ...]], hands: list[int], hand: int) -> tuple:
    return tuple(piece for piece, owner in zip(pieces, hands, strict=True) if owner == hand)


@given(shards(), st.sampled_from(["float32", "bfloat16", "float64"]))
def test_all_cuts_give_the_whole_and_none_less_does(cut: list[Shard], dtype: str) -> None:
    whole = whole_of(dtype)
    chunks = [chunk_of("w", 1, (ROWS, COLS), shard, dtype) for shard in cut]
    assert are_whole(chunks)
    first, body = joined([(chunk, part_of(whole, chunk.shard, dtype)) for chunk in chunks])
    assert bytes(body) == whole and first.shard.whole and first.total_bytes == len(whole)
    assert (first.layer, first.step, first.dtype, first.shape) == ("w", 1, dtype, (ROWS, COLS))
    for missing in range(len(chunks)):
        rest = chunks[:missing] + chunks[missing + 1 :]
        assert not rest or not are_whole(rest)
    assert not are_whole([*chunks, chunks[0]])


@pytest.mark.parametrize("shape", [(ROWS, COLS), (ROWS, 5, 2)])
def test_rows_with_scales(shape: tuple[int, ...]) -> None:
    whole = whole_of("int8", shape)
    cut = [Shard(((4, 6, 0, COLS), (0, 1, 0, COLS))), Shard(((1, 4, 0, COLS),))]
    chunks = [chunk_of("w", 1, shape, shard, "int8") for shard in cut]
    assert are_whole(chunks)
    _, body = joined([(chunk, part_of(whole, chunk.shard, "int8")) for chunk in chunks])
    assert bytes(body) == whole


def test_a_whole_comes_without_a_copy() -> None:
    chunk, body = chunk_of("w", 1), bytearray(64)
    assert are_whole([chunk]) and joined([(chunk, body)]) == (chunk, body) and joined([(chunk, body)])[1] is body


@pytest.mark.parametrize(
    "others",
    [
        [chunk_of("w", 1)],
        [chunk_of("w", 1, shard=Shard(((2, 4, 0, 4),)), dtype="bfloat16")],
        [chunk_of("w", 1, (4, 2, 2), Shard(((2, 4, 0, 4),)))],
        [chunk_of("w", 1, shard=Shard(ranges=((8, 16),)))],
        [chunk_of("w", 1, shard=Shard(((1, 3, 0, 4),)))],
        [],
    ],
    ids=["a whole beside it", "another dtype", "another shape", "another cut", "an overlap", "nothing"],
)
def test_what_does_not_fit_is_no_whole(others: list) -> None:
    assert not are_whole([chunk_of("w", 1, shard=Shard(((0, 2, 0, 4),))), *others])
