"""max_overhead: the share of time spent pushing stays within it, whatever the pushes cost."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd_client.budget import BURST_SECONDS, Budget

MB = 10**6


def test_the_first_push_is_whole_whatever_it_will_cost() -> None:
    assert Budget(0.001, 0.0).affordable_bytes(450 * MB, 450 * MB, 0.0) == 450 * MB


def test_no_limit_takes_every_push_whole() -> None:
    budget = Budget(None, 0.0)
    for _ in range(3):
        budget.spend(10.0, MB)
        assert budget.affordable_bytes(MB, MB, 0.0) == MB


def test_a_push_that_cost_too_much_has_to_be_earned_back() -> None:
    budget = Budget(0.01, 0.0)
    budget.spend(0.1, MB)  # 80 ms more than there were
    assert budget.affordable_bytes(MB, MB, 7.9) is None
    assert (
        budget.affordable_bytes(MB, MB, 17.9) is None
    )  # 99 ms of the 100 that a whole one takes; least_bytes is whole
    assert budget.affordable_bytes(MB, MB, 18.1) == MB


def test_a_push_is_shrunk_to_what_was_earned_but_not_below_half() -> None:
    budget = Budget(0.01, 0.0)
    budget.spend(0.1, MB)
    assert budget.affordable_bytes(MB, 0, 8.0 + 4.9) is None
    assert budget.affordable_bytes(MB, 0, 8.0 + 6.0) == pytest.approx(0.6 * MB, rel=1e-5)


def test_a_large_layer_is_waited_for() -> None:
    budget = Budget(0.01, 0.0)
    budget.spend(0.1, MB)
    assert budget.affordable_bytes(MB, int(0.9 * MB), 8.0 + 6.0) is None
    assert budget.affordable_bytes(MB, int(0.9 * MB), 8.0 + 9.5) == pytest.approx(0.95 * MB, rel=1e-5)


def test_idle_time_is_not_saved_up_without_end() -> None:
    budget = Budget(0.5, 0.0)
    budget.spend(0.1, MB)
    budget.affordable_bytes(MB, MB, 1e6)
    assert budget.tokens_seconds == pytest.approx(0.2)


def test_a_clock_that_goes_back_costs_nothing() -> None:
    budget = Budget(0.5, 100.0)
    budget.spend(0.001, MB)
    assert budget.affordable_bytes(MB, MB, 50.0) == MB


def test_a_push_that_copied_nothing_has_to_be_earned_back_too() -> None:
    budget = Budget(0.01, 0.0)
    budget.spend(0.1, 0)
    assert budget.affordable_bytes(0, 0, 7.9) is None and budget.affordable_bytes(MB, 0, 7.9) is None
    assert budget.affordable_bytes(0, 0, 8.1) == 0 and budget.affordable_bytes(MB, 0, 8.1) == MB


@given(
    st.floats(0.001, 0.2),
    st.lists(st.tuples(st.floats(0.001, 0.5), st.floats(0.2, 5.0), st.booleans()), min_size=50, max_size=200),
)
def test_the_share_spent_stays_within_the_limit(share: float, steps: list[tuple[float, float, bool]]) -> None:
    """Steps of any length, pushes 0.2–5 times as dear as 10 ms, some of which fail: beyond what is earned go the burst,
    the first push and the last one, whose cost was not foreseen."""
    budget = Budget(share, 0.0)
    now = spent = dearest = 0.0
    for step_seconds, factor, fails in steps:
        now += step_seconds
        allowed = budget.affordable_bytes(MB, MB // 2, now)
        if allowed:
            cost = 0.01 * factor * allowed / MB
            budget.spend(cost, 0 if fails else allowed)
            spent += cost
            dearest = max(dearest, cost)
    assert spent <= share * now + BURST_SECONDS + dearest + 1e-9
