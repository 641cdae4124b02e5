"""What of a trainer's own numbers is sent, and what is not."""

from __future__ import annotations

import math
import threading
from typing import Any

import numpy as np
import pytest
import torch

from rankd.records import METRIC_NAMES
from rankd.stages.reports import measurement_of
from rankd_client.measured import METRICS, report
from rankd_client.reports import Reports
from rankd_client.wire import LOCAL_VERSION, Reported, decode, encode

NORM, RATIO = "spectral_norm", "effective_rank"


def reported(measurements: Any, role: Any = "weight", refused: tuple[str, ...] = ()) -> tuple[dict[str, Any], Any]:
    """The bodies that are queued, by layer, and the reasons."""
    queue = Reports(threading.Condition())
    num_queued, skipped = report(queue, measurements, 3, role, refused)
    bodies = {}
    while (item := queue.next()) is not None:
        message = decode(encode(item.message()), LOCAL_VERSION)
        assert isinstance(message, Reported)
        bodies[message.layer] = message.body
        queue.sent(item)
        measurement_of("r", message, 0.0)  # whatever goes, a daemon takes
    assert num_queued == len(bodies)
    return bodies, skipped


def test_the_metrics_are_the_daemons() -> None:
    assert set(METRICS) == set(METRIC_NAMES)


def test_numbers_go_as_they_are_and_other_keys_with_them() -> None:
    values = {RATIO: 3, NORM: 1.5, "stable_rank": None, "rows": 4, "cols": 8, "loss": 0.5, "notes": ["a", {"b": None}]}
    assert reported({"w": values}) == ({"w": values}, {})


@pytest.mark.parametrize("number", [np.float32(2.5), np.float64(2.5), torch.tensor(2.5), np.array(2.5)], ids=str)
def test_numbers_of_numpy_and_torch_are_numbers(number: Any) -> None:
    assert reported({"w": {RATIO: number}}) == ({"w": {RATIO: 2.5}}, {})
    assert reported({"w": {RATIO: 1.0, "rows": np.int64(4)}}) == ({"w": {RATIO: 1.0, "rows": 4}}, {})


@pytest.mark.parametrize(
    ("values", "body"),
    [
        ({NORM: math.inf, RATIO: math.nan}, {NORM: None, RATIO: None, "finite": False}),
        ({RATIO: math.nan}, {RATIO: None, "finite": False}),
        ({NORM: 0.0, RATIO: math.nan}, {NORM: 0.0, RATIO: None}),  # all zero: 0 / 0
        ({NORM: -math.inf}, {NORM: None, "finite": False}),
        ({NORM: -0.0, RATIO: 0}, {NORM: -0.0, RATIO: 0}),
        ({NORM: 1.0, "condition": math.inf}, {NORM: 1.0, "condition": None}),
        ({NORM: math.nan, "finite": True}, {NORM: None, "finite": True}),  # the trainer knows better
        ({"finite": False}, {"finite": False}),
    ],
)
def test_what_is_not_finite_is_null_and_says_so(values: dict[str, Any], body: dict[str, Any]) -> None:
    assert reported({"w": values}) == ({"w": body}, {})


@pytest.mark.parametrize(
    ("layer", "values", "reason"),
    [
        ("w", {RATIO: "3"}, "effective_rank=3: expected a number from 0, or None"),
        ("w", {RATIO: torch.ones(2)}, "effective_rank=<Tensor>: expected a number from 0, or None"),
        ("w", {RATIO: True}, "effective_rank=True: expected a number from 0, or None"),
        ("w", {RATIO: 1 << 70}, "effective_rank=<int>: expected a number from 0, or None"),
        ("w", {RATIO: -3.0}, "effective_rank=-3.0: expected a number from 0, or None"),
        ("w", {NORM: np.float32(-0.5)}, "spectral_norm=-0.5: expected a number from 0, or None"),
        ("w", {RATIO: 1.0, "num_above_mp_edge": -1}, "num_above_mp_edge=-1: expected a number from 0, or None"),
        ("w", {RATIO: 1.0, "rows": -1}, "rows=-1"),
        ("w", {RATIO: 1.0, "finite": 1}, "finite=1"),
        ("w", {RATIO: 1.0, "source_dtype": "x" * 33}, "source_dtype=" + "x" * 33),
        ("w", {RATIO: 1.0, "shape": [1]}, "shape=<list>"),
        ("w", {"loss": 1.0}, "none of spectral_norm"),
        ("w", {RATIO: 1.0, "x": math}, "cannot be sent"),
        ("w", {RATIO: 1.0, "x": [math.nan]}, "cannot be sent"),
        ("w", {RATIO: 1.0, "x": 1 << 80}, "cannot be sent"),
        ("w", {RATIO: 1.0, "x": "y" * (64 << 10)}, "at most 65536"),
        ("w", {RATIO: 1.0, "singular_values": [1.5] * 1025}, "at most 1024 elements"),
        ("w", {RATIO: 1.0, "of": {str(number): number for number in range(1025)}}, "at most 1024 elements"),
        ("w", {RATIO: 1.0, **{str(number): number for number in range(1024)}}, "at most 1024 elements"),
        ("w", {3: 1.0}, "expected a mapping"),
        ("w", 1.0, "float: expected a mapping of metric -> number or None"),
        ("", {RATIO: 1.0}, "name is not 1 to 1024"),
        (7, {RATIO: 1.0}, "name is not a string"),
    ],
)
def test_what_is_not_sent_has_its_reason_and_the_rest_goes(layer: Any, values: Any, reason: str) -> None:
    bodies, skipped = reported({layer: values, "good": {RATIO: 1.0}})
    assert list(bodies) == ["good"]
    assert len(skipped) == 1 and reason in next(iter(skipped.values()))


def test_wrong_use_as_a_whole() -> None:
    assert reported(None) == ({}, {"*": "NoneType: expected a mapping of layer -> {metric: number}"})
    assert reported({"w": {RATIO: 1.0}}, role="spam")[1] == {
        "*": "role spam: expected weight, update, gradient, feature"
    }
    assert reported({"w": {RATIO: 1.0}}, role=["weight"])[1]["*"].startswith("role <list>")


def test_what_the_daemon_has_no_room_for_is_not_sent_again() -> None:
    measurements = {"w": {RATIO: 1.0}, "v": {RATIO: 1.0}}
    bodies, skipped = reported(measurements, role="feature", refused=("w (feature)", "v"))
    assert list(bodies) == ["v"] and skipped == {"w (feature)": "refused"}


def test_a_step_that_a_layer_has_is_not_reported_again() -> None:
    queue = Reports(threading.Condition())
    reason = "already reported at step 3: give all its metrics in one call"

    def skipped(*layers: str, step: int = 3, role: str = "weight", **values: Any) -> dict[str, str]:
        measurements = {layer: values or {RATIO: 1.0} for layer in layers}
        num_queued, reasons = report(queue, measurements, step, role, ())
        assert num_queued == len(layers) - len(reasons)
        return reasons

    assert skipped("w", loss=1.0).keys() == {"w"}
    assert skipped("w") == {}, "what was skipped was not reported"
    assert skipped("w", "v", spectral_norm=1.0) == {"w": reason}
    assert skipped("w", role="feature") == {}
    assert skipped("w", role="feature") == {"w (feature)": reason}
    assert skipped("w", step=4) == {} and skipped("w") == {}, "a run went back"
