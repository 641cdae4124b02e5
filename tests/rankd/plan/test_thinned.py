"""Layers that are thinned as far as they may be still alarm: of recorded trainings and of collapses at any push."""

import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median

import pytest
from measured_as import read_as

from rankd.judge import DetectConfig, RunJudges
from rankd.plan.layer import Layer
from rankd.records import Measurement
from rankd.replay import read_file

TRACES = Path(__file__).parents[3] / "benchmarks" / "traces"
LABELS = json.loads((TRACES / "labels.json").read_text())
FAULTS = [name for name, label in LABELS.items() if label["class"] == "fault"]
HEALTHY = [name for name, label in LABELS.items() if label["class"] == "healthy"]
ONLY = DetectConfig(ema="off", spectral_norm_growth="off")
MAX_EVERY = 32


def thinned(rows: list[Measurement], tier: str, max_every: int = MAX_EVERY) -> Iterator[Measurement]:
    """As a plan reads them that has no time at all."""
    layers: dict[str, Layer] = {}
    for row in rows:
        layer = layers.setdefault(row.layer, Layer(row.run, len(layers), 0.0, tier=tier))  # type: ignore[arg-type]
        layer.arrive(float(row.step or 0), row.step or 0)
        layer.every = layer.most_every(max_every)
        yield read_as(row, f"{layer.take()} float32", seed=7)


def raised(rows: list[Measurement], tier: str) -> list[tuple[int, str]]:
    judges = RunJudges(ONLY)
    alerts = [alert for row in thinned(rows, tier) for alert in judges.update(row)]
    return [(alert.step or 0, alert.layer) for alert in alerts if alert.rule == "effective_rank_drop"]


@pytest.mark.parametrize("tier", ["exact", "estimate"])
def test_faults_are_found(tier: str) -> None:
    delays = []
    for name in FAULTS:
        label, rows = LABELS[name], list(read_file(TRACES / f"{name}.jsonl.gz"))
        alerts = raised(rows, tier)
        assert all(step >= label["cause_step"] for step, _ in alerts), name
        found = next((step for step, layer in alerts if layer in label["event_layers"]), None)
        assert found is not None, name
        delays.append(len({row.step for row in rows if label["event_step"] < (row.step or 0) <= found}))
    assert median(delays) <= 30 and max(delays) <= 100, delays


@pytest.mark.parametrize("tier", ["exact", "estimate"])
def test_healthy_trainings_raise_nothing(tier: str) -> None:
    alerted = [name for name in HEALTHY if raised(list(read_file(TRACES / f"{name}.jsonl.gz")), tier)]
    assert alerted == []


def pushes(steps: list[int], collapse: int) -> list[Measurement]:
    """Effective rank falls to half at the push `collapse`."""
    found = []
    for number, step in enumerate(steps):
        rank = 50.0 if number >= collapse else 100.0
        metrics: dict[str, float | None] = {"effective_rank": rank, "stable_rank": 10.0, "spectral_norm": 1.0}
        found.append(Measurement("r", "w", step, (128, 128), True, False, metrics))
    return found


@pytest.mark.parametrize("steps", [range(10, 4000), range(0, 400_000, 100), range(0, 40_000, 10)], ids=str)
@pytest.mark.parametrize("collapse", [50, 100, 150, 200, 300, 500, 1000, 1500])
def test_a_collapse_at_any_push_is_found(steps: range, collapse: int) -> None:
    rows = pushes(list(steps), collapse)
    assert len([row for row in thinned(rows, "exact") if row.metrics["effective_rank"]]) < 0.25 * len(rows)
    (step, _), *_ = raised(rows, "exact")
    assert steps[collapse] < step <= 1.15 * steps[collapse] + 5 * (steps[1] - steps[0])


@pytest.mark.parametrize("collapse", [80, 100, 300, 1000])
def test_a_collapse_is_found_where_a_run_is_first_seen_late(collapse: int) -> None:
    assert raised(pushes(list(range(10_000, 14_000)), collapse), "exact")


@pytest.mark.parametrize("collapse", [300, 600, 1000])
def test_a_collapse_is_found_where_a_run_is_pushed_more_rarely_from_then_on(collapse: int) -> None:
    assert raised(pushes([*range(collapse), *range(collapse, 50 * collapse, 10)], collapse), "exact")
