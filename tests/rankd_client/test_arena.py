"""The arena: regions never overlap, the bound holds, and what is released can be had again."""

from __future__ import annotations

import sys
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from rankd_client.arena import ALIGNMENT_BYTES, Arena, Memory, Region, aligned
from rankd_client.wire import BLOCK_HEADER_BYTES


def allocate(num_bytes: int) -> Memory:
    return Memory(memoryview(bytearray(num_bytes)))


def arena_of(num_bytes: int) -> Arena:
    arena = Arena(num_bytes, allocate)
    assert arena.grow(num_bytes)
    return arena


def test_regions_are_aligned_and_as_long_as_asked() -> None:
    arena = arena_of(4096)
    first, second = arena.reserve(100), arena.reserve(1)
    assert first is not None and second is not None
    assert (first.start, second.start) == (64, 192)  # behind the header
    assert (len(first.view), len(second.view)) == (100, 1)


def test_a_region_is_writable_memory_of_its_own() -> None:
    arena = arena_of(256)
    first, second = arena.reserve(64), arena.reserve(64)
    assert first is not None and second is not None
    first.view[:] = b"a" * 64
    second.view[:] = b"b" * 64
    assert bytes(first.view) == b"a" * 64


def test_full_means_none_and_released_memory_joins() -> None:
    arena = arena_of(3 * 64)
    regions = [arena.reserve(64) for _ in range(3)]
    assert arena.reserve(1) is None
    for index in (0, 2, 1):  # the last one touches a free span on either side
        region = regions[index]
        assert region is not None
        arena.release(region)
    whole = arena.reserve(3 * 64)
    assert whole is not None and whole.start == 64


def test_growth_stops_at_the_bound() -> None:
    arena = Arena(1000, allocate)
    assert arena.grow(400) and arena.num_bytes == aligned(400)
    assert not arena.grow(400)
    assert arena.grow(5000) and arena.num_bytes == 960  # 1000 down to whole cache lines
    assert not arena.grow(5000)


def test_a_block_too_small_for_the_largest_region_is_not_taken() -> None:
    arena = Arena(1024, allocate)
    arena.grow(512)
    assert arena.grow(576, smallest_bytes=512) and arena.num_bytes == 1024
    assert not Arena(512, allocate).grow(100, smallest_bytes=600)


def test_a_region_larger_than_each_block_gets_one_of_its_own() -> None:
    arena = Arena(4096, allocate)
    assert arena.grow(512, 256) and arena.grow(1024, 512) and arena.num_bytes == 1024
    assert arena.reserve(768) is None
    assert arena.grow(1024, 768) and arena.reserve(768) is not None and arena.num_bytes == 1792
    assert not arena.grow(1024, 768)  # there is one as large
    assert not arena.grow(1024, 3000)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 700)), max_size=60))
def test_no_two_regions_overlap_and_nothing_is_lost(actions: list[tuple[bool, int]]) -> None:
    arena = Arena(4096, allocate)
    arena.grow(2048)
    arena.grow(4096)
    held: list[Region] = []
    for release, size in actions:
        if release and held:
            arena.release(held.pop(size % len(held)))
        elif (region := arena.reserve(size)) is not None:
            held.append(region)
        spans = sorted((id(region.block), region.start, region.start + region.reserved_bytes) for region in held)
        pairs = pairwise(spans)
        assert all(block != other or end <= start for (block, _, end), (other, start, _) in pairs)
        assert arena.free_bytes + sum(region.reserved_bytes for region in held) == 4096
        assert all(region.start % ALIGNMENT_BYTES == 0 for region in held)
        assert all(region.start >= BLOCK_HEADER_BYTES for region in held)
    for region in held:
        arena.release(region)
    assert arena.reserve(2048) is not None and arena.reserve(2048) is not None


def test_the_epoch_is_in_the_header_alone() -> None:
    arena = arena_of(128)
    region = arena.reserve(128)
    assert region is not None
    region.view[:] = b"x" * 128
    (block,) = arena.blocks
    block.set_epoch((1 << 63) - 1)
    assert bytes(block.memory.view) == ((1 << 63) - 1).to_bytes(8, sys.byteorder) + bytes(56) + b"x" * 128
    assert block.size == len(block.memory.view)


def test_a_place_is_had_again_while_it_is_free() -> None:
    arena = arena_of(4 * 128)
    arena.grow(4 * 128)
    regions = [arena.reserve(100) for _ in range(4)]
    first, second, third, fourth = (region for region in regions if region is not None)
    assert arena.reserve_again(second) is None
    for region in (second, third):
        arena.release(region)
    again = arena.reserve_again(third)
    assert again is not None and (again.block, again.start, again.num_bytes) == (third.block, third.start, 100)
    assert arena.reserve_again(third) is None
    assert arena.free_bytes == 128
    other = arena.reserve(64)
    assert other is not None and other.start == second.start
    assert arena.reserve_again(second) is None, "half of it is another's"
    for region in (first, fourth, again, other):
        arena.release(region)
    assert arena.free_bytes == 4 * 128
    whole = arena.reserve(4 * 128)
    assert whole is not None, "all in one piece"
