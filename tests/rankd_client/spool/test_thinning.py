"""What goes first: evenly over the doublings of the step, the start last, whatever turns layers take."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd_client.spool.thinning import BLIND_BELOW, thinning_class

STEPS = st.lists(st.integers(0, 1 << 40), min_size=1, max_size=200, unique=True).map(sorted)


def classes(steps: list[int]) -> dict[int, int]:
    return {step: thinning_class(last, step) for last, step in zip([None, *steps], steps, strict=False)}


@given(STEPS, st.integers(0, 40))
def test_class_m_leaves_at_most_2_to_the_m_in_each_doubling(steps: list[int], m: int) -> None:
    kept = Counter(step.bit_length() for step, thinning in classes(steps).items() if thinning <= m and step)
    first = steps[0].bit_length()
    assert all(number <= 2**m + (doubling == first) for doubling, number in kept.items())


@given(STEPS, st.integers(0, 40))
def test_each_bucket_that_has_something_keeps_its_first(steps: list[int], m: int) -> None:
    """So that what is kept is spread as evenly as what there was."""
    by_class, first = classes(steps), {}
    for step in steps:
        width = max(0, step.bit_length() - 1 - m)
        first.setdefault((step.bit_length() if step > 1 else 1, step >> width), step)
    assert set(first.values()) <= {step for step, thinning in by_class.items() if thinning <= m}


@given(STEPS, st.lists(st.integers(0, 199), max_size=20))
def test_processes_that_dropped_something_keep_nearly_the_same(steps: list[int], dropped: list[int]) -> None:
    """Only the successor of a snapshot that one of them did not get may be of another class there, of a lower one."""
    missing = {steps[at % len(steps)] for at in dropped}
    there = [step for step in steps if step not in missing]
    if there:
        mine, other = classes(steps), classes(there)
        after = {step for last, step in zip([None, *steps], steps, strict=False) if last is None or last in missing}
        assert all(other[step] == mine[step] for step in there if step not in after)
        assert all(other[step] <= mine[step] for step in there)


@pytest.mark.parametrize("num_turns", [2, 3, 4, 7, 8, 16])
def test_layers_that_take_turns_keep_alike_many(num_turns: int) -> None:
    """Of layers that go every num_turns-th push, a rule of step numbers alone would keep one and lose the others."""
    pushes = 1 << 12
    for m in range(12):
        kept = [
            sum(thinning <= m for thinning in classes(list(range(turn, pushes, num_turns))).values())
            for turn in range(num_turns)
        ]
        assert max(kept) - min(kept) <= 13 and min(kept) > 0


def test_the_default_rule_sees_as_long_as_class_5_is_there() -> None:
    steps = [step for step, thinning in classes(list(range(200_000))).items() if thinning <= BLIND_BELOW and step > 32]
    assert all(27 * (after - before) <= before for before, after in pairwise(steps))
    assert len(steps) < 500


def test_the_same_step_again_goes_first_and_largest_steps_are_fine() -> None:
    assert thinning_class(5, 5) == 3
    assert thinning_class(0, (1 << 63) - 1) == 0
    assert thinning_class((1 << 63) - 1, (1 << 63) - 1) == 63
    assert thinning_class(None, 0) == 0
