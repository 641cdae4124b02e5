"""Decisions, without a device."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.executors.scheduling import (
    MAX_BATCH,
    MAX_BATCH_BYTES,
    MAX_BATCH_SECONDS,
    MAX_LOST,
    MEMORY_SHARE,
    Need,
    fits,
    may_take,
    room_for,
    take,
    take_for_cpu,
)

GIB = 1 << 30
ROOMY = {0: 80.0 * GIB, 1: 80.0 * GIB}


def need(kind: str = "w", seconds: float = 0.004, num_bytes: int = 1 << 20, room: int = 1 << 24, turn: int = 0) -> Need:
    return Need(kind, "estimate", seconds, num_bytes, room, turn)


def test_one_device_takes_the_oldest_and_what_is_alike() -> None:
    waiting = [need("a"), need("b", 0.2), need("a"), need("b"), need("a")]
    assert take(waiting, 0, {0: GIB}) == [0, 2, 4]
    assert take([], 0, {0: GIB}) == []


def test_a_batch_is_bounded_in_number_bytes_and_seconds_and_what_is_larger_goes_alone() -> None:
    assert len(take([need(seconds=1e-4)] * 40, 0, {0: GIB})) == MAX_BATCH
    assert len(take([need(num_bytes=MAX_BATCH_BYTES // 4)] * 9, 0, {0: 80 * GIB})) == 4
    assert len(take([need(seconds=MAX_BATCH_SECONDS / 2)] * 9, 0, {0: GIB})) == 2
    assert take([need(num_bytes=2 * MAX_BATCH_BYTES, seconds=9.0)] * 2, 0, {0: 80 * GIB}) == [0]


def test_of_several_devices_each_takes_its_share_and_less_as_the_end_comes_near() -> None:
    waiting, sizes = [need(seconds=0.01)] * 32, []
    while waiting:
        batch = take(waiting, len(sizes) % 2, ROOMY)
        waiting = [one for place, one in enumerate(waiting) if place not in set(batch)]
        sizes.append(len(batch))
    assert sizes == [16, 8, 4, 2, 1, 1]


def test_a_batch_is_not_cut_to_less_than_what_it_costs_by_itself() -> None:
    waiting = [need(seconds=2**-10)] * 16
    assert len(take(waiting, 0, ROOMY)) == 15
    assert len(take([replace(one, tier="exact") for one in waiting], 0, ROOMY)) == 8


def test_of_several_devices_the_largest_comes_first_but_not_before_earlier_turns() -> None:
    waiting = [need("small", 0.01), need("large", 0.2), need("middle", 0.1), need("late", 0.3, turn=1)]
    assert take(waiting, 0, ROOMY) == [1]
    assert take([waiting[0], waiting[3]], 0, ROOMY) == [0]


def test_what_does_not_fit_is_left_to_a_device_with_room_even_a_busy_one() -> None:
    free = {0: 4.0 * GIB, 1: 40.0 * GIB}
    waiting = [need("huge", 1.0, room=20 * GIB), need("small")]
    assert take(waiting, 0, free) == [1], "the other one has room"
    assert take(waiting[:1], 0, free) == [] and take(waiting, 1, free) == [0]
    assert take_for_cpu(waiting, free) == [], "it waits rather than go to the CPU"


def test_where_there_is_room_on_none_the_one_with_most_tries_and_then_the_cpu() -> None:
    free = {0: 4.0 * GIB, 1: 8.0 * GIB}
    huge = need(room=20 * GIB)
    assert take([huge], 0, free) == [] and take([huge], 1, free) == [0] and take_for_cpu([huge], free) == []
    refused = replace(huge, tried=frozenset({1}))
    assert take([refused], 0, free) == take([refused], 1, free) == [] and take_for_cpu([refused], free) == [0]


def test_what_was_thought_to_fit_and_did_not_goes_to_another_that_has_room() -> None:
    refused = replace(need(), tried=frozenset({0}))
    assert take([refused], 0, ROOMY) == [] and take([refused], 1, ROOMY) == [0] and take_for_cpu([refused], ROOMY) == []
    assert take_for_cpu([replace(refused, tried=frozenset({0, 1}))], ROOMY) == [0]


def test_a_device_of_whose_memory_somebody_takes_gets_less() -> None:
    waiting = [need(seconds=1e-4, num_bytes=64 << 20)] * 40
    assert len(take(waiting, 0, {0: 80 * GIB})) == 16
    assert len(take(waiting, 0, {0: GIB})) == int(MEMORY_SHARE * GIB) // (64 << 20)


def test_what_devices_were_lost_at_goes_to_the_others_once() -> None:
    once, twice = (replace(need(), num_lost=number) for number in (1, MAX_LOST))
    assert take([once], 0, ROOMY) == [0] and take([twice], 0, ROOMY) == [] and take_for_cpu([once, twice], ROOMY) == [1]
    assert take_for_cpu([replace(need(), off_devices=True)], ROOMY) == [0]
    assert take_for_cpu([need("a"), need("b")], {}) == [0], "no device is left"


@pytest.mark.parametrize("tier", ["norms", "estimate", "exact"])
def test_room_grows_with_each_side_and_holds_the_copies(tier: str) -> None:
    def room(rows: int, cols: int) -> int:
        return room_for(rows, cols, tier, 2 * rows * cols)  # type: ignore[arg-type]

    assert room(4096, 11008) == room(11008, 4096) > room(4096, 4096) >= (2 + 8) * 4096**2
    assert not fits(replace(need(), room=10), 11.0) and fits(replace(need(), room=9), 11.0)


needs = st.builds(
    Need,
    kind=st.sampled_from("ab"),
    tier=st.sampled_from(["norms", "estimate", "exact"]),
    seconds=st.floats(1e-4, 10),
    num_bytes=st.integers(0, 1 << 31),
    room=st.integers(0, 1 << 32),
    turn=st.integers(0, 3),
    tried=st.frozensets(st.integers(0, 2)),
    num_lost=st.integers(0, 2),
    off_devices=st.booleans(),
)
frees = st.dictionaries(st.integers(0, 2), st.one_of(st.floats(0, 1 << 33), st.just(float("inf"))))


@given(st.lists(needs, max_size=12), frees)
def test_all_comes_to_an_end_and_each_is_taken_once(waiting: list[Need], free: dict[int, float]) -> None:
    """Whatever waits is some device's or the CPU's, so that it never waits for nobody."""
    left = list(enumerate(waiting))
    taken: list[int] = []
    while left:
        of = [one for _, one in left]
        found = next((batch for name in free if (batch := take(of, name, free))), None) or take_for_cpu(of, free)
        assert found and len(set(found)) == len(found), "somebody takes something"
        assert len({of[place].kind for place in found}) == 1 and len(found) <= MAX_BATCH
        taken += [left[place][0] for place in found]
        left = [one for place, one in enumerate(left) if place not in set(found)]
    assert sorted(taken) == list(range(len(waiting)))


@given(needs, frees)
def test_either_a_device_may_have_it_or_it_is_the_cpus(one: Need, free: dict[int, float]) -> None:
    takers = [name for name in free if may_take(one, name, free)]
    assert bool(take_for_cpu([one], free)) == (not takers)
    assert not any(name in one.tried for name in takers)
