import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.parts import summarise_stack
from rankd.records import METRIC_NAMES, Measurement, Reading

NAMES = (*METRIC_NAMES, "nuclear_norm", "power_law_alpha")
ZERO = Reading(dict.fromkeys(NAMES, 0.0), "zero", zero=True)
NONFINITE = Reading(dict.fromkeys(NAMES), "nonfinite", finite=False)


def reading(effective: float = 4.0, spectral: float = 1.0, frobenius: float = 2.0, **changes: object) -> Reading:
    metrics = {"stable_rank": effective / 2, "effective_rank": effective, "effective_rank_energy": effective / 3}
    norms = {"spectral_norm": spectral, "frobenius_norm": frobenius, "nuclear_norm": 3.0}
    plain = Reading({**metrics, **norms, "participation_ratio": effective, "power_law_alpha": effective}, "svdvals")
    return replace(plain, **changes)  # type: ignore[arg-type]


def test_the_lowest_expert_and_the_largest_norm() -> None:
    low = reading(2.0, 1.0, 3.0, summary=b"low", seconds=1.0, further={"inside_noise": True})
    stack = summarise_stack([reading(6.0, 5.0, 4.0, seconds=2.0), low, reading(4.0)])
    assert stack.metrics == {
        **{"stable_rank": 1.0, "effective_rank": 2.0, "effective_rank_energy": 2 / 3},
        **{"spectral_norm": 5.0, "frobenius_norm": math.hypot(4, 3, 2), "nuclear_norm": 9.0},
        **{"participation_ratio": 2.0, "power_law_alpha": 2.0},
    }
    assert (stack.finite, stack.zero, stack.tier, stack.method) == (True, False, "exact", "svdvals")
    assert (stack.summary, stack.seconds, stack.bars) == (b"low", 3.0, {})
    assert stack.further == {
        "inside_noise": True,
        "num_zero_parts": 0,
        "experts": {
            "num": 3,
            "lowest": 1,
            "effective_rank": {"min": 2.0, "median": 4.0, "max": 6.0},
            "zero": [],
            "nonfinite": [],
        },
    }


def test_dead_experts_are_counted_and_do_not_hide_the_living() -> None:
    stack = summarise_stack([ZERO, reading(6.0), ZERO, reading(4.0)])
    assert stack.metrics["effective_rank"] == 4.0 and stack.metrics["frobenius_norm"] == math.hypot(2, 2)
    assert stack.further["num_zero_parts"] == 2 and stack.further["experts"]["zero"] == [0, 2]
    assert stack.further["experts"]["lowest"] == 3
    assert not stack.zero and stack.method == "svdvals"


def test_a_stack_of_dead_experts_is_zero() -> None:
    stack = summarise_stack([ZERO] * 20)
    assert stack.zero and stack.finite and set(stack.metrics.values()) == {0.0}
    assert stack.further["num_zero_parts"] == 20 and stack.further["experts"]["zero"] == list(range(16))
    assert stack.further["experts"]["lowest"] is None and stack.further["experts"]["effective_rank"] is None


def test_one_expert_that_is_not_finite_makes_the_stack_so() -> None:
    stack = summarise_stack([reading(bars={"effective_rank": (3.0, 5.0)}, summary=b"s"), NONFINITE, ZERO])
    assert not stack.finite and not stack.zero and set(stack.metrics.values()) == {None}
    assert stack.bars == {} and stack.summary == b""
    assert stack.further["experts"]["nonfinite"] == [1]
    assert stack.further["experts"]["effective_rank"] == {"min": 4.0, "median": 4.0, "max": 4.0}


def test_bars_are_combined_as_their_metrics_are() -> None:
    bars = {"effective_rank": (3.0, 5.0), "spectral_norm": (1.0, 1.5), "frobenius_norm": (3.0, 4.0)}
    first = reading(4.0, 1.0, 3.0, bars=bars, tier="estimate", method="slq")
    second = reading(4.5, 1.2, 4.0, bars={"effective_rank": (2.5, 6.0)}, tier="estimate", method="slq")
    stack = summarise_stack([first, second])
    assert stack.bars == {
        "effective_rank": (2.5, 5.0),
        "spectral_norm": (1.2, 1.5),
        "frobenius_norm": (5.0, math.hypot(4.0, 4.0)),
    }


def test_an_exact_lowest_expert_needs_no_bar() -> None:
    estimate = reading(9.0, bars={"effective_rank": (8.0, 10.0)}, tier="estimate", method="slq")
    stack = summarise_stack([estimate, reading(4.0)])
    assert stack.bars == {} and stack.metrics["effective_rank"] == 4.0
    assert (stack.tier, stack.method) == ("estimate", "slq+svdvals")


def test_what_one_expert_lacks_the_stack_lacks() -> None:
    norms = Reading({"stable_rank": 1.0, "spectral_norm": None}, "power", tier="norms")
    stack = summarise_stack([norms, reading(4.0)])
    assert stack.metrics["stable_rank"] == 1.0
    assert stack.metrics["effective_rank"] is None and stack.metrics["spectral_norm"] is None
    assert stack.tier == "norms" and stack.further["experts"]["lowest"] == 0


def test_a_norm_beyond_float_is_null() -> None:
    stack = summarise_stack([reading(frobenius=1.7e308), reading(frobenius=1.7e308)])
    assert stack.metrics["frobenius_norm"] is None and "frobenius_norm" not in stack.bars
    assert summarise_stack([reading(frobenius=1e200)]).metrics["frobenius_norm"] == 1e200


def test_no_readings_are_refused() -> None:
    with pytest.raises(ValueError, match="expected one or more"):
        summarise_stack([])


VALUES = st.floats(1.0, 1e30)


def barred(value: float, below: float, above: float) -> Reading:
    plain = reading(value, value, value)
    own = {name: number for name, number in plain.metrics.items() if number is not None}
    bars = {name: (number * (1 - below), number * (1 + above)) for name, number in own.items()}
    return replace(plain, bars=bars, tier="estimate", method="slq")


BARRED = st.builds(barred, VALUES, st.floats(0, 1), st.floats(0, 1))


@given(st.lists(st.one_of(BARRED, VALUES.map(reading), st.just(ZERO)), min_size=1, max_size=9))
def test_a_stack_lies_inside_its_bars_and_goes_through_json(readings: list[Reading]) -> None:
    stack = summarise_stack(readings)
    for name, (low, high) in stack.bars.items():
        value = stack.metrics[name]
        assert value is not None and low < high
        assert low * (1 - 1e-12) <= value <= high * (1 + 1e-12)
    kinds = {"finite": stack.finite, "zero": stack.zero, "metrics": stack.metrics}
    row = Measurement("r", "l", 1, (9, 4, 4), method=stack.method, extra=stack.extra(), **kinds).to_json()
    assert Measurement.from_json(row).to_json() == row


def test_values_before_the_noise_was_taken_off_are_combined_as_those_after_it() -> None:
    readings = [
        Reading(
            {"nuclear_norm": norm, "effective_rank": low},
            "m",
            further={"nuclear_norm_raw": 2 * norm, "effective_rank_raw": 2 * low},
        )
        for norm, low in ((1.0, 5.0), (2.0, 3.0))
    ]
    stack = summarise_stack(readings)
    assert (stack.metrics["nuclear_norm"], stack.further["nuclear_norm_raw"]) == (3.0, 6.0)
    assert (stack.metrics["effective_rank"], stack.further["effective_rank_raw"]) == (3.0, 6.0)
