"""Parts of tensors, as rectangles of the matrix that the tensor is."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankd_client.watch.frameworks.cut import Cut, Intervals, chunk, strided_chunk
from rankd_client.wire import Shard, disjoint

WHOLE: Intervals = ((0, 10),)


def indices(kept: Intervals) -> list[int]:
    return [i for start, end in kept for i in range(start, end)]


@given(st.integers(1, 30), st.integers(1, 6), st.integers(1, 6))
def test_chunks_are_those_of_torch(size: int, num_chunks: int, num_blocks: int) -> None:
    whole = torch.arange(size)
    expected = [part.tolist() for part in whole.chunk(num_chunks)]
    expected += [[]] * (num_chunks - len(expected))
    assert [indices(chunk(((0, size),), num_chunks, i)) for i in range(num_chunks)] == expected
    blocks = [block.chunk(num_chunks) for block in whole.chunk(num_blocks)]
    for i in range(num_chunks):
        strided = [value for block in blocks if i < len(block) for value in block[i].tolist()]
        assert indices(strided_chunk(((0, size),), num_blocks, num_chunks, i)) == strided


def test_a_chunk_of_a_chunk() -> None:
    assert chunk(((2, 4), (7, 11)), 2, 0) == ((2, 4), (7, 8))
    assert chunk(((2, 4), (7, 11)), 2, 1) == ((8, 11),)
    assert strided_chunk(WHOLE, 2, 5, 4) == ((4, 5), (9, 10))


SHAPES = st.lists(st.integers(1, 6), min_size=2, max_size=4).map(tuple)


@given(st.data(), SHAPES)
def test_a_part_in_the_order_of_its_rectangles(data: st.DataObject, shape: tuple[int, ...]) -> None:
    """As a daemon puts them together: rectangle by rectangle, each row-major."""
    kept: list[Intervals] = [((0, size),) for size in shape]
    for _ in range(data.draw(st.integers(0, 3))):
        dim, num_chunks = data.draw(st.integers(0, len(shape) - 1)), data.draw(st.integers(1, 3))
        at = data.draw(st.integers(0, num_chunks - 1))
        kept[dim] = strided_chunk(kept[dim], data.draw(st.integers(1, 2)), num_chunks, at)
    cut, whole = Cut(shape, tuple(kept)), torch.arange(math.prod(shape)).view(shape)
    part = whole[torch.meshgrid(*[torch.tensor(indices(each), dtype=torch.long) for each in kept], indexing="ij")]
    shard = cut.shard()
    assert cut.num_elements == part.numel()
    if shard is None:  # blocks of several sizes, which the rest of this test could not be true of
        assert any(len({end - start for start, end in each}) > 1 for each in kept)
        return
    assert shard.num_elements(shape) == part.numel()
    if not part.numel():
        return
    matrix = whole.view(shape[0], -1)
    expected = torch.cat([matrix[r0:r1, c0:c1].flatten() for r0, r1, c0, c1 in shard.rectangles])
    view = cut.view(part)
    assert torch.equal(view.flatten(), expected)
    assert view.untyped_storage().data_ptr() == part.untyped_storage().data_ptr()
    assert disjoint(shard.rectangles)


def test_the_parts_of_all_processes_are_the_whole() -> None:
    shape = (5, 4, 6)
    seen = torch.zeros(5, 24)
    for a, b in product(range(3), range(2)):
        cut = Cut(shape, (chunk(((0, 5),), 3, a), ((0, 4),), chunk(((0, 6),), 2, b)))
        shard = cut.shard()
        assert shard is not None
        for r0, r1, c0, c1 in shard.rectangles:
            seen[r0:r1, c0:c1] += 1
    assert bool((seen == 1).all())


def test_a_process_without_an_element_has_an_empty_rectangle_of_the_others_kind() -> None:
    assert Cut((3, 4), ((), ((0, 4),))).shard() == Shard(rectangles=((0, 0, 0, 4),))
    shard = Cut((3, 4), (((0, 3),), ())).shard()
    assert shard == Shard(rectangles=((0, 0, 0, 0),)) and not shard.has_whole_rows((3, 4))


@pytest.mark.parametrize("shape", [(4, 600, 8), (1100, 4)])
def test_more_pieces_than_a_message_has(shape: tuple[int, ...]) -> None:
    kept: list[Intervals] = [((0, size),) for size in shape]
    kept[0] = strided_chunk(kept[0], 1100 if len(shape) == 2 else 2, 1, 0)
    kept[-1] = chunk(kept[-1], 2, 0)
    spread: Intervals = tuple((i, i + 1) for i in range(0, 2 * shape[0], 2)) if len(shape) == 2 else ((0, 1), (2, 3))
    assert Cut(shape if len(shape) == 3 else (2 * shape[0], 4), (spread, *kept[1:])).shard() is None
