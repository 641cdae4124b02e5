"""Steps that are given and left out, and times to wait."""

from __future__ import annotations

import math
import re
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from rankd_client.arguments import MAX_WAIT_SECONDS, Steps, seconds_of
from rankd_client.wire import MAX_STEP


def test_steps_count_up_where_they_are_left_out() -> None:
    steps = Steps()
    assert [steps.pushed(step) for step in (None, None, 7, None, 3, None)] == [0, 1, 7, 8, 3, 4]
    assert steps.reported(None) == 4, "numbers are of the step that was pushed last"
    assert steps.pushed(np.int64(9)) == 9 and steps.reported(20) == 20 and steps.reported(None) == 9


def test_reports_count_up_by_themselves_where_nothing_is_pushed() -> None:
    steps = Steps()
    assert [steps.reported(step) for step in (None, None, 5, None)] == [0, 1, 5, 6]


@pytest.mark.parametrize("step", [-1, MAX_STEP + 1, True, False, 1.0, "3"])
def test_a_step_that_is_none_is_named(step: Any) -> None:
    for check in (Steps().pushed, Steps().reported):
        with pytest.raises(ValueError, match=rf"step={re.escape(str(step))}: expected an integer from 0"):
            check(step)


@pytest.mark.parametrize(
    ("timeout", "seconds"),
    [(None, 5.0), (0, 0.0), (-3, 0.0), (2, 2.0), (Fraction(1, 2), 0.5), (math.inf, MAX_WAIT_SECONDS)],
)
def test_times_to_wait(timeout: Any, seconds: float) -> None:
    assert seconds_of(timeout, 5.0) == seconds


@pytest.mark.parametrize("timeout", ["1", True, math.nan, [1]])
def test_what_is_no_time(timeout: Any) -> None:
    with pytest.raises(ValueError, match=r"timeout=.*: expected a number of seconds, or None for 5.0"):
        seconds_of(timeout, 5.0)
