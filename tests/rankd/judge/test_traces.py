"""Recorded trainings: rows without bars give the alerts they always gave; read otherwise, none is false or lost."""

import hashlib
import json
import random
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_as import SETTINGS, read_as

from rankd.detectors import DETECTORS
from rankd.judge import DetectConfig, RunJudges
from rankd.records import Alert, Measurement
from rankd.replay import read_file, replay

TRACES = Path(__file__).parents[3] / "benchmarks" / "traces"
LABELS = json.loads((TRACES / "labels.json").read_text())
GOLDEN = json.loads((Path(__file__).parent / "alerts_of_traces.json").read_text())
"""From before there were bars: of each recording the number of alerts, a digest of them and one of all layers' states.
"""

HEALTHY = [name for name, label in LABELS.items() if label["class"] == "healthy"]
FAULTS = [name for name, label in LABELS.items() if label["class"] == "fault" and name.endswith(".s0")]
WITH_EFFECTIVE_RANK = [name for name in SETTINGS if not name.startswith("norms")]

SHORT = DetectConfig(ema_window=12, ema_threshold=0.5)
"""So that a short healthy series has an EMA with a baseline that it does not leave far."""
TIGHT = DetectConfig(
    effective_rank_drop_scales=((1.05, 0.055), (1.15, 0.075)),  # type: ignore[arg-type]
    spectral_norm_growth_scales=((1.15, 0.345),),  # type: ignore[arg-type]
    ema_window=12,
    ema_threshold=0.49,
)
"""What is silent under it is not so near a threshold of SHORT that 0.1 % in each reading would matter."""


@cache
def rows_of(name: str) -> list[Measurement]:
    return list(read_file(TRACES / f"{name}.jsonl.gz"))


@cache
def series(name: str, every: int) -> list[list[Measurement]]:
    """Of each layer of a recording every `every`-th finite measurement."""
    layers: dict[str, list[Measurement]] = {}
    for row in rows_of(name):
        if row.finite and not row.zero:
            layers.setdefault(row.layer, []).append(row)
    return [layer[::every] for layer in layers.values()]


def raised(rows: Iterable[Measurement], config: DetectConfig) -> set[str]:
    judges = RunJudges(config)
    return {alert.rule for row in rows for alert in judges.update(row) if alert.state == "firing"}


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


@pytest.mark.parametrize("name", GOLDEN)
def test_rows_without_bars_give_the_same_alerts_and_states_as_ever(name: str) -> None:
    judges, rows = RunJudges(), rows_of(name)
    alerts = [json.dumps(alert.to_json(), sort_keys=True) for row in rows for alert in judges.update(row)]
    states = [judges.state(name, layer, "weight") for layer in dict.fromkeys(row.layer for row in rows)]
    assert [len(alerts), digest("\n".join(alerts).encode()), digest(b"".join(states))] == GOLDEN[name]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_healthy_layers_raise_nothing_however_they_are_read(data: st.DataObject) -> None:
    """Any number of changes of tier, wire dtype and correction at any steps."""
    layers = series(data.draw(st.sampled_from(HEALTHY)), data.draw(st.sampled_from([3, 10])))
    rows = data.draw(st.sampled_from(layers))
    seed = data.draw(st.integers(0, 99))
    changes = data.draw(st.dictionaries(st.integers(0, len(rows) - 1), st.sampled_from(list(SETTINGS)), max_size=12))
    setting, read = "exact float32", []
    for place, row in enumerate(rows):
        setting = changes.get(place, setting)
        read.append(read_as(row, setting, seed))
    assert raised(read, SHORT) <= raised(rows, TIGHT)


@pytest.mark.parametrize("before", SETTINGS)
def test_one_change_at_every_possible_step_raises_nothing(before: str) -> None:
    rows, seed = series("tfm_adamw.s0", 10)[1], 1
    assert not raised(rows, TIGHT), "a layer that says nothing"
    for after in SETTINGS:
        old, new = ([read_as(row, setting, seed) for row in rows] for setting in (before, after))
        for place in range(len(rows)):
            assert not raised(old[:place] + new[place:], SHORT), (after, rows[place].step)


def found_after(alerts: Iterable[Alert], name: str) -> int | None:
    """Steps from the cause to the first alert on a layer that it changed; None where there was one before."""
    label = LABELS[name]
    steps = [(alert.step or 0, alert.layer) for alert in alerts if alert.state == "firing"]
    if any(step < label["cause_step"] for step, _ in steps):
        return None
    return next((step - label["cause_step"] for step, layer in steps if layer in label["event_layers"]), None)


ALARMS = DetectConfig(ema="off", spectral_norm_growth="off")


def of_changed(name: str) -> list[Measurement]:
    """A recording's rows of the layers that its cause changed."""
    return [row for row in rows_of(name) if row.layer in LABELS[name]["event_layers"]]


@cache
def found_plainly(name: str) -> int | None:
    return found_after(replay(of_changed(name), ALARMS), name)


READ: dict[str, Callable[[int], str]] = {
    "another each 37 checks": lambda check: WITH_EFFECTIVE_RANK[check // 37 % len(WITH_EFFECTIVE_RANK)],
    "alternating": lambda check: ("exact float32", "estimate float32")[check % 2],
    "mostly estimates": lambda check: "estimate bfloat16" if check % 10 else "exact bfloat16",
    "at random": lambda check: random.Random(check).choice(list(SETTINGS)),
}


@pytest.mark.parametrize("way", [*WITH_EFFECTIVE_RANK, *READ])
def test_collapses_are_found_however_the_layers_are_read(way: str) -> None:
    setting_of, slower = READ.get(way, lambda check: way), []
    for name in FAULTS:
        checks = sorted({row.step or 0 for row in rows_of(name)})
        settings_of = {step: setting_of(check) for check, step in enumerate(checks)}
        read = [read_as(row, settings_of[row.step or 0], seed=7) for row in of_changed(name)]
        plain, found = found_plainly(name), found_after(replay(read, ALARMS), name)
        assert plain is not None and found is not None, name
        slower.append((found - plain) / (checks[1] - checks[0]))
    # Slow falls through 15 % of noise take their time; and what changes all the time is known by its bars alone.
    allowed = (0, 10) if way in SETTINGS else (2, 80)
    assert median(slower) <= allowed[0] and max(slower) <= allowed[1], slower


def test_every_rule_is_among_those_that_stay_silent() -> None:
    silent = [DETECTORS.keys() - raised(rows, TIGHT) for name in HEALTHY for rows in series(name, 10)]
    assert all(sum(rule in each for each in silent) > len(silent) / 3 for rule in DETECTORS)
