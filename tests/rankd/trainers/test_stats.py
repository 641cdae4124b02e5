"""What clients tell, read as what it is: network input."""

import math
from typing import Any

import pytest

from rankd.trainers import NO_STATS, Stats, read_stats
from rankd.trainers.stats import MAX_KEYS

GOOD: dict[str, Any] = {
    **dict.fromkeys(("step", "num_pushes", "num_due", "num_skipped", "num_dropped", "num_replaced", "num_layers"), 3),
    **dict.fromkeys(("every_steps", "wire_bytes", "oldest_steps", "num_never", "device_bytes"), 0),
    **dict.fromkeys(("blocked_seconds", "elapsed_seconds", "step_seconds", "push_seconds", "share"), 0.25),
    "max_overhead": 0.005,
    "path": "memfd",
}


def test_all_that_there_is_comes_through() -> None:
    stats, num_bad = read_stats(GOOD)
    assert num_bad == 0
    assert stats.to_json() == GOOD
    assert set(GOOD) == set(Stats.__dataclass_fields__)


@pytest.mark.parametrize("key", sorted(GOOD))
@pytest.mark.parametrize("value", [-1, math.nan, math.inf, 10**400, True, "x" * 1000, [], {"a": 1}], ids=ascii)
def test_what_is_wrong_is_left_out_and_counted(key: str, value: Any) -> None:
    stats, num_bad = read_stats({**GOOD, key: value})
    assert num_bad == 1
    assert stats.to_json() == {name: good for name, good in GOOD.items() if name != key}


def test_null_and_unknown_keys_are_no_faults() -> None:
    assert read_stats({"max_overhead": None, "of_a_newer_client": [1, 2]}) == (NO_STATS, 0)


def test_a_map_that_is_too_large_tells_nothing() -> None:
    told = {**GOOD, **{f"k{number}": 0 for number in range(MAX_KEYS)}}
    assert read_stats(told) == (NO_STATS, len(told))


def test_an_integer_stands_for_a_number_but_not_the_other_way_round() -> None:
    stats, num_bad = read_stats({"push_seconds": 2, "step": 2.0})
    assert (stats.push_seconds, stats.step, num_bad) == (2.0, None, 1)
