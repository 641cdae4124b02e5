"""How far off a row says that it may be."""

from typing import Any

import pytest

from rankd.detectors import Precision, precision_of
from rankd.detectors.precision import NOT_READ
from rankd.records import Measurement


def row(value: float | None = 8.0, wire_dtype: str = "int8", method: str = "slq", **extra: Any) -> Measurement:
    metrics = {"effective_rank": value}
    return Measurement("r", "h", 1, (64, 64), True, False, metrics, method=method, wire_dtype=wire_dtype, extra=extra)


def of(measurement: Measurement) -> Precision | None:
    return precision_of(measurement, "effective_rank")


def test_a_plain_row_has_none_whatever_its_wire_dtype_or_tier() -> None:
    assert of(row()) is None
    assert of(row(tier="estimate")) is None
    assert of(row(stable_rank_low=1.0, stable_rank_high=2.0)) is None


def test_bars_and_what_was_not_corrected() -> None:
    bars = {"effective_rank_low": 7.5, "effective_rank_high": 12}
    assert of(row(**bars)) == Precision("exact int8", 7.5, 12.0)
    assert of(row(**bars, effective_rank_raw=12.5)) == Precision("exact int8 corrected", 7.5, 12.5, 12.5)
    assert of(row(effective_rank_raw=12)) == Precision("exact int8 corrected", 8.0, 12.0, 12.0)
    assert of(row(9.0, effective_rank_low=9.5, effective_rank_high=10.0)) == Precision("exact int8", 9.0, 10.0)


def test_who_errs_alike_has_one_signature() -> None:
    bars = {"effective_rank_low": 7.5, "effective_rank_high": 12}
    signatures = [
        precision.signature
        for method in ("slq", "xtrace")
        for tier in ("exact", "estimate")
        for wire_dtype in ("bfloat16", "")
        if (precision := of(row(method=method, tier=tier, wire_dtype=wire_dtype, **bars)))
    ]
    assert signatures == [
        *("exact bfloat16", "exact", "estimate bfloat16 slq", "estimate slq"),
        *("exact bfloat16", "exact", "estimate bfloat16 xtrace", "estimate xtrace"),
    ]


def test_a_tier_that_does_not_give_the_metric_says_so() -> None:
    assert of(row(None, tier="norms")) is NOT_READ
    assert of(row(None)) is None


@pytest.mark.parametrize("wrong", [None, "8", True, float("nan"), float("inf"), 10**400, [8.0]])
def test_what_is_no_number_is_none(wrong: Any) -> None:
    assert of(row(effective_rank_raw=wrong, effective_rank_low=wrong, effective_rank_high=9.0)) is None
