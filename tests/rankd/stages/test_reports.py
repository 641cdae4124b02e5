"""Numbers that trainers computed: read as network input, in the order in which their layer's came."""

import asyncio
import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.records import METRIC_NAMES, Measurement, Snapshot
from rankd.stages import reports as module
from rankd.stages.reports import Report, Reports, measurement_of
from rankd_client.wire import Reported, WireError, decode, encode

GOOD = {"effective_rank": 3.0, "spectral_norm": 1.5}


def make() -> Reports:
    return Reports(Counter(), lambda: 12.5)


def snapshot(step: int, layer: str = "w", role: str = "weight") -> Snapshot:
    return Snapshot("r", layer, step, (2, 2), "float32", "", np.zeros(16, np.uint8), role)


def report(step: int, layer: str = "w", run: str = "r", role: str = "weight") -> Report:
    return Report(measurement_of(run, Reported(layer, step, GOOD, role), 0.0))


async def ready(reports: Reports) -> list[int | None]:
    """Steps of all that come at once, none of which is over yet."""
    steps = []
    while True:
        try:
            steps.append((await asyncio.wait_for(reports.next(), 0.001)).measurement.step)
        except TimeoutError:
            return steps


# What a body is ----------------------------------------------------------------------------------------------------


def test_a_body_is_a_row_of_which_much_may_be_missing() -> None:
    row = make().read("r", Reported("w", 7, {**GOOD, "loss": 0.5, "effective_rank_low": 2.9}, "feature"))
    assert (row.run, row.layer, row.step, row.role, row.method, row.time) == ("r", "w", 7, "feature", "reported", 12.5)
    assert row.metrics == {"stable_rank": None, "effective_rank": 3.0, "spectral_norm": 1.5}
    assert (row.shape, row.finite, row.zero, row.extra) == (
        (0, 0),
        True,
        False,
        {"loss": 0.5, "effective_rank_low": 2.9},
    )


def test_the_header_and_the_daemon_have_the_say() -> None:
    body: dict[str, Any] = {"run": "x", "layer": "x", "step": 1, "role": "weight", "time": 1.0, "method": "exact"}
    body |= {"wire_dtype": "int8", "measure_seconds": -5.0, "tier": "norms", "parts": ["q"], "part_of": "z"}
    body |= {"num_zero_parts": 3, "experts": {}}
    row = measurement_of("r", Reported("w", 7, GOOD | body, "gradient"), 2.0)
    assert (row.run, row.layer, row.step, row.role, row.time, row.method) == ("r", "w", 7, "gradient", 2.0, "reported")
    assert (row.wire_dtype, row.tier, row.measure_seconds, row.extra) == ("", "exact", 0.0, {})


@pytest.mark.parametrize(
    ("body", "shape"),
    [({"rows": 4, "cols": 6}, (4, 6)), ({"shape": [4, 2, 3]}, (4, 2, 3)), ({"shape": [4, 6], "rows": 9}, (4, 6))],
)
def test_a_shape_that_is_told(body: dict[str, Any], shape: tuple[int, ...]) -> None:
    assert measurement_of("r", Reported("w", 1, GOOD | body), 0.0).shape == shape


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({}, "missing_field"),
        ({"loss": 1.0}, "missing_field"),
        ({"effective_rank": "3"}, "bad_field"),
        ({"effective_rank": True}, "bad_field"),
        ({"effective_rank": []}, "bad_field"),
        (GOOD | {"rows": -1}, "bad_field"),
        (GOOD | {"rows": 1 << 48}, "bad_field"),
        (GOOD | {"rows": 2.0}, "bad_field"),
        (GOOD | {"shape": [1] * 9}, "bad_shape"),
        (GOOD | {"shape": [0, 4]}, "bad_shape"),
        (GOOD | {"shape": "4"}, "bad_shape"),
        (GOOD | {"finite": 1}, "bad_field"),
        (GOOD | {"x": [{"y": 1 << 63}]}, "bad_field"),
        (GOOD | {"source_dtype": 3}, "bad_field"),
        (GOOD | {"source_dtype": "x" * 33}, "bad_field"),
    ],
)
def test_what_is_no_row_is_refused_with_a_code(body: dict[str, Any], code: str) -> None:
    with pytest.raises(WireError) as caught:
        measurement_of("r", Reported("w", 1, body), 0.0)
    assert caught.value.code == code


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(1 << 63), (1 << 64) - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
OURS = ("rows", "cols", "shape", "finite", "tier", "effective_rank_low", "inside_noise", "wire_noise_floor", "parts")
KEYS = st.sampled_from([*METRIC_NAMES, *OURS, "error_bound", "measure_seconds"]) | st.text(max_size=8)


@given(st.dictionaries(KEYS, VALUES, max_size=6))
def test_any_body_gives_a_row_or_a_wire_error(body: dict[str, Any]) -> None:
    """And such a row can be written, kept and judged like any other."""
    try:
        message = decode(encode(Reported("w", 1, body)), 3)
        assert isinstance(message, Reported)
        row = measurement_of("r", message, 0.0)
    except (WireError, ValueError):
        return
    again = json.loads(json.dumps(row.to_json(), allow_nan=False))
    assert Measurement.from_json(again).to_json() == row.to_json()
    assert all(value is None or math.isfinite(value) for value in row.metrics.values())


# In which order ----------------------------------------------------------------------------------------------------


async def test_a_report_waits_for_nothing_but_its_own_layer() -> None:
    reports = make()
    reports.put(snapshot(1, "v"))
    reports.put(snapshot(1, role="gradient"))
    reports.put(report(2))
    assert await ready(reports) == [2]


async def test_reports_of_a_layer_are_judged_one_after_the_other() -> None:
    reports = make()
    first, second = report(1), report(2)
    reports.put(first)
    reports.put(second)
    assert await ready(reports) == [1]
    reports.over(first)
    assert await ready(reports) == [2]
    reports.over(second)
    assert len(reports) == 0


async def test_a_report_comes_after_the_snapshots_before_it_and_before_those_after() -> None:
    reports = make()
    before, middle, after, last = snapshot(10), report(11), snapshot(12), report(13)
    for item in (before, middle, after, last):
        reports.put(item)
    assert await ready(reports) == []
    reports.over(before)  # measured
    assert await ready(reports) == [11]
    reports.over(middle)
    assert await ready(reports) == []
    reports.over(after)
    assert await ready(reports) == [13]


async def test_what_is_superseded_stands_in_nobodys_way() -> None:
    reports = make()
    measuring, waiting, held = snapshot(10), snapshot(12), report(13)
    for item in (measuring, waiting, held):
        reports.put(item)
    newer = snapshot(14)
    reports.put(newer)
    reports.over(waiting)  # 14 took its place
    assert await ready(reports) == []
    reports.over(measuring)
    assert await ready(reports) == [13]
    reports.over(held)
    reports.over(newer)


def test_there_is_room_for_so_many_of_a_run_of_a_namespace_and_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_HELD_OF_RUN", 3)
    monkeypatch.setattr(module, "MAX_HELD", 8)

    def full(reports: Reports, run: str) -> bool:
        try:
            reports.read(run, Reported("w", 1, GOOD))
        except WireError as error:
            assert error.code == "assembly_full"
            return True
        return False

    reports = make()
    held = [report(step, run="r") for step in range(3)]
    for item in held:
        reports.put(item)
    assert full(reports, "r") and not full(reports, "s") and not full(reports, "@ns/r")
    for run in ("@ns/a", "@ns/b"):
        reports.put(report(1, run=run))
        reports.put(report(2, run=run))
    assert full(reports, "@ns/c") and not full(reports, "s")
    reports.put(report(1, run="s"))
    assert full(reports, "t")
    reports.over(held[0])
    assert not full(reports, "t") and not full(reports, "r")
