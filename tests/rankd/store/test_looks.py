from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankd.store.entries import Entry
from rankd.store.reader import Reader


def entries(make: Any, num_rounds: int, layers: tuple[str, ...], step_of: Any = lambda k: k) -> list[Entry]:
    random = np.random.default_rng(0)
    made = []
    for k in range(num_rounds):
        for layer in layers:
            bad = random.random() < 0.1
            metrics = {"stable_rank": None if bad else float(random.random()), "frobenius_norm": 1.0}
            measurement = make.measurement(layer=layer, step=step_of(k), finite=not bad, metrics=metrics)
            made.append(Entry(len(made) + 1, measurement))
    return made


def test_history_of_a_layer(make: Any, open_writer: Any, data: Path) -> None:
    rows = entries(make, 50, ("a", "b"), lambda k: 10 * k)
    open_writer().write(*rows)
    with Reader(data) as reader:
        steps, values = reader.history("r", "b", "stable_rank")
        expected = [entry.measurement for entry in rows if entry.measurement.layer == "b"]
        assert (steps.dtype, values.dtype, steps.tolist()) == (np.int64, np.float64, [m.step for m in expected])
        np.testing.assert_array_equal(values, np.array([m.metrics["stable_rank"] for m in expected], float))
        assert reader.history("r", "b", "effective_rank")[1].size == 50
        for layer, role in (("no", "weight"), ("b", "update")):
            assert [part.tolist() for part in reader.history("r", layer, "stable_rank", role)] == [[], []]
        with pytest.raises(ValueError, match="metric 'loss': expected one of stable_rank, "):
            reader.history("r", "b", "loss")


@pytest.mark.parametrize("rolled_up", ["all", "half", "nothing"])
@pytest.mark.parametrize("num_bins", [1, 7, 100, 1000])
def test_heatmap_is_the_mean_of_what_was_measured(
    make: Any, open_writer: Any, data: Path, look: Any, rolled_up: str, num_bins: int
) -> None:
    rows = entries(make, 60, ("z", "a", "m"), lambda k: 1000 + 3 * k)
    writer = open_writer()
    writer.write(*rows[:90] if rolled_up == "half" else rows)
    if rolled_up != "nothing":
        writer.close(30)  # with its last chores
    if rolled_up == "half":
        writer = open_writer()
        writer.write(*rows[90:])
    assert look("SELECT rolled_n FROM run") == [({"all": 180, "half": 90, "nothing": 0}[rolled_up],)]
    with Reader(data) as reader:
        heatmap = reader.heatmap("r", "stable_rank", num_bins)
    assert heatmap.layers == ("z", "a", "m")  # as first recorded
    num_columns = heatmap.values.shape[1]
    assert heatmap.values.shape[0] == 3 and 1 <= num_columns <= num_bins and len(heatmap.edges) == num_columns + 1
    assert heatmap.edges[0] <= 1000 and heatmap.edges[-1] > 1000 + 3 * 59 and (np.diff(heatmap.edges) > 0).all()
    for i, layer in enumerate(heatmap.layers):
        for j, (low, high) in enumerate(zip(heatmap.edges, heatmap.edges[1:], strict=False)):
            there = [
                m.metrics["stable_rank"]
                for m in (e.measurement for e in rows)
                if m.layer == layer and low <= m.step < high
            ]
            values = [value for value in there if value is not None]
            assert heatmap.values[i, j] == pytest.approx(np.mean(values) if values else np.nan, rel=1e-12, nan_ok=True)


LARGE = [0, 1, (1 << 53) + 1, (1 << 62) + 1, (1 << 63) - 1]


@pytest.mark.parametrize("rolled_up", [True, False])
def test_steps_of_any_size(make: Any, open_writer: Any, data: Path, rolled_up: bool) -> None:
    writer = open_writer()
    for n, step in enumerate(LARGE, 1):
        writer.write(Entry(n, make.measurement(step=step, metrics={"stable_rank": float(n)})))
    if rolled_up:
        writer.close(30)
    with Reader(data) as reader:
        assert reader.history("r", "a", "stable_rank")[0].tolist() == LARGE
        for num_bins in (1, 4, 100):
            heatmap = reader.heatmap("r", "stable_rank", num_bins)
            edges = heatmap.edges.tolist()
            assert edges == sorted(set(edges)) and edges[0] == 0 and edges[-1] == (1 << 63) - 1
            columns = np.searchsorted(edges, LARGE, side="right") - 1
            for column in range(len(edges) - 1):
                there = [n for n, at in enumerate(columns, 1) if min(at, len(edges) - 2) == column]
                assert heatmap.values[0, column] == pytest.approx(np.mean(there) if there else np.nan, nan_ok=True)


def test_a_return_between_large_steps(make: Any, open_writer: Any, data: Path) -> None:
    large = 1 << 53
    writer = open_writer()
    for n, step in enumerate([large, large + 1, large + 2, large + 1, large + 3], 1):
        writer.write(Entry(n, make.measurement(step=step, metrics={"stable_rank": float(n)})))
    with Reader(data) as reader:
        steps, values = reader.history("r", "a", "stable_rank")
        assert steps.tolist() == [large, large + 1, large + 3] and values.tolist() == [1.0, 4.0, 5.0]


def test_heatmap_of_nothing(make: Any, open_writer: Any, data: Path) -> None:
    open_writer().write(Entry(1, make.measurement(step=None)))
    with Reader(data) as reader:
        assert reader.heatmap("no", "stable_rank").values.shape == (0, 0)
        assert reader.heatmap("r", "stable_rank").values.shape == (1, 0)
        assert reader.heatmap("r", "stable_rank", role="update").layers == ()
        with pytest.raises(ValueError, match="metric 'frobenius_norm': expected one of stable_rank, effective_rank, "):
            reader.heatmap("r", "frobenius_norm")
        with pytest.raises(ValueError, match="num_bins=0"):
            reader.heatmap("r", "stable_rank", 0)


def test_summaries(make: Any, open_writer: Any, data: Path) -> None:
    rows = [Entry(n, make.measurement(step=n, summary=b"" if n % 3 == 0 else bytes([n % 256]))) for n in range(1, 601)]
    open_writer().write(*rows)
    with Reader(data) as reader:
        found = list(reader.summaries("r", "a"))
        assert found == [(n, n, bytes([n % 256]), "exact") for n in range(1, 601) if n % 3]
        assert [n for n, *_ in reader.summaries("r", "a", from_step=5, to_step=8)] == [5, 7, 8]
        assert list(reader.summaries("r", "b")) == []
