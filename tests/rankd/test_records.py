import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.metrics import METRICS
from rankd.records import CONTRACT_METRICS, METRIC_NAMES, Measurement

ROW: dict[str, Any] = {
    **{"run": "lm-42", "step": 3, "layer": "h.0", "rows": 8, "cols": 6},
    **{"stable_rank": 2.5, "effective_rank": 4.5, "spectral_norm": 1.0},
}

numbers = st.none() | st.floats(allow_nan=False, allow_infinity=False)


def test_columns_are_of_metrics_of_the_table_in_its_order() -> None:
    assert tuple(name for name in METRICS if name in METRIC_NAMES) == METRIC_NAMES
    assert METRIC_NAMES[: len(CONTRACT_METRICS)] != () and set(CONTRACT_METRICS) <= set(METRIC_NAMES)


@given(
    metrics=st.fixed_dictionaries(dict.fromkeys(METRIC_NAMES, numbers)),
    step=st.none() | st.integers(0, 2**63 - 1),
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple),
    finite=st.booleans(),
    time=numbers,
    texts=st.lists(st.text(), min_size=6, max_size=6),
)
def test_a_row_gives_the_measurement_back(
    metrics: dict[str, float | None],
    step: int | None,
    shape: tuple[int, ...],
    finite: bool,
    time: float | None,
    texts: list[str],
) -> None:
    run, layer, role, method, source_dtype, wire_dtype = texts
    known = [metrics[name] for name in CONTRACT_METRICS if metrics[name] is not None]
    zero = finite and known != [] and not any(known)
    extra = {"loss": 0.5, "error": {"effective_rank": [1, None]}}
    measurement = Measurement(
        *(run, layer, step, shape, finite, zero, metrics, role, method, source_dtype, wire_dtype, 0.25, time),
        extra=extra,
    )
    assert Measurement.from_json(json.loads(json.dumps(measurement.to_json()))) == measurement


def test_little_is_needed_and_the_rest_is_kept() -> None:
    row = {**ROW, "effective_rank": None, "loss": None, "note": ["x"]}
    measurement = Measurement.from_json(row)
    assert measurement == Measurement(
        *("lm-42", "h.0", 3, (8, 6), True, False),
        {"stable_rank": 2.5, "effective_rank": None, "spectral_norm": 1.0},
        extra={"loss": None, "note": ["x"]},
    )
    assert (measurement.role, measurement.time) == ("weight", None)


def test_integers_are_numbers_too_and_become_floats() -> None:
    measurement = Measurement.from_json({**ROW, "effective_rank": 4, "time": 1})
    assert repr(measurement.metrics["effective_rank"]) == "4.0"
    assert repr(measurement.time) == "1.0"


@pytest.mark.parametrize(
    ("changes", "zero"),
    [
        ({"effective_rank": 0, "spectral_norm": 0, "stable_rank": 0}, True),
        ({"effective_rank": 0, "spectral_norm": 9.2e-16, "stable_rank": 0}, False),
        ({"effective_rank": 0.0, "spectral_norm": None, "stable_rank": None}, True),
        ({"effective_rank": None, "spectral_norm": None, "stable_rank": None}, False),
        ({"effective_rank": 0, "finite": False}, False),
        ({"stable_rank": 0.0}, False),
        ({"effective_rank": None, "spectral_norm": None}, False),
    ],
)
def test_which_rows_are_all_zero(changes: dict[str, Any], zero: bool) -> None:
    assert Measurement.from_json({**ROW, **changes}).zero is zero


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"run": 3}, "run is 3; expected a text"),
    ({"layer": None}, "layer is None; expected a text"),
    ({"step": 3.0}, "step is 3.0; expected a whole number from 0 to 2^63 - 1, or null"),
    ({"step": True}, "step is True; expected a whole number"),
    ({"step": -1}, "step is -1; expected a whole number"),
    ({"step": 2**63}, "step is 9223372036854775808; expected a whole number"),
    ({"rows": -1}, "rows is -1; expected a whole number"),
    ({"rows": None}, "rows is None; expected a whole number"),
    ({"effective_rank": "4"}, "effective_rank is '4'; expected a finite number or null"),
    ({"effective_rank": False}, "effective_rank is False; expected a finite number or null"),
    ({"participation_ratio": float("inf")}, "participation_ratio is inf; expected a finite number or null"),
    ({"spectral_norm": 10**400}, "spectral_norm is 1000"),
    ({"time": "now"}, "time is 'now'; expected a finite number or null"),
    ({"finite": 1}, "finite is 1; expected true or false"),
    ({"finite": None}, "finite is None; expected true or false"),
    ({"role": None}, "role is None; expected a text"),
    ({"shape": []}, "shape is []; expected a list of sizes"),
    ({"shape": [8, -6]}, "shape is [8, -6]; expected a list of sizes"),
    ({"shape": [8, 2, 2]}, "shape is [8, 2, 2]; expected one of 8 rows and 6 columns"),
    ({"measure_seconds": None}, "measure_seconds is None; expected a finite number"),
    ({"run": ["x" * 1000]}, "run is ['" + "x" * 98 + "…; expected a text"),
]


@pytest.mark.parametrize(("changes", "words"), WRONG, ids=lambda case: str(case)[:60])
def test_a_wrong_row_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        Measurement.from_json({**ROW, **changes})


@pytest.mark.parametrize("key", ROW)
def test_a_missing_key_is_named(key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key} is missing; expected at least run, step, layer, rows, cols, "):
        Measurement.from_json({other: value for other, value in ROW.items() if other != key})


def test_the_keys_that_every_row_has_come_first_and_in_the_contracts_order() -> None:
    keys = ["run", "step", "layer", "rows", "cols", "stable_rank", "effective_rank", "spectral_norm", "finite"]
    row = Measurement("r", "w", 1, (2, 3), True, False, dict.fromkeys(METRIC_NAMES, 1.0)).to_json()
    assert list(row)[: len(keys)] == keys and set(METRIC_NAMES) < row.keys()
