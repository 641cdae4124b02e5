"""The benchmark of scale: fits find what they were made from, needs are what arithmetic says, and the documentation has
the tables that it prints."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
Load = Callable[[str], ModuleType]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


@pytest.fixture
def fit(load: Load) -> Any:
    return load("_scale_fit").load()


def test_growth_is_found_again(load: Load) -> None:
    module = load("_scale_fit")
    true = module.Growth(overhead=0.001, seconds_1k=0.5, power=2.7, stretch=0.4)
    shapes = [(512, 512), (1024, 1024), (2048, 2048), (512, 2048), (4096, 1024)]
    found = module.fit_growth({shape: true.seconds(shape) for shape in shapes}, tiny=0.001)
    assert found == pytest.approx(true)
    assert found.seconds((300, 700)) == found.seconds((700, 300)) == pytest.approx(true.seconds((300, 700)))


def test_taking_in_is_found_again_and_nothing_is_below_zero(load: Load) -> None:
    module = load("_scale_fit")
    rows = [
        {"process_seconds": 10.0, "seconds": 10.0},
        {"process_seconds": 640.0, "seconds": 10.0},
        {"gb": 2.0, "messages": 100.0, "process_seconds": 10.0, "seconds": 10.0},
        {"gb": 0.01, "messages": 9000.0, "process_seconds": 80.0, "seconds": 10.0},
    ]
    true = {"gb": 0.6, "messages": 0.0004, "process_seconds": 0.001, "seconds": 0.01}
    seconds = [sum(true[name] * number for name, number in row.items()) for row in rows]
    found = module.fit_intake(rows, seconds)
    assert {name: found[name] for name in true} == pytest.approx(true)
    assert found["gb_with_keys"] == found["matrices"] == 0.0
    cheaper = module.fit_intake(rows[:2], [1.0, 0.5])
    assert min(cheaper.values()) == 0.0 and max(cheaper.values()) > 0


def test_a_fit_is_read_as_it_was_stored(load: Load, fit: Any, tmp_path: Path) -> None:
    module = load("_scale_fit")
    module.store(fit, tmp_path / "fit.json")
    assert module.load(tmp_path / "fit.json") == fit
    assert set(fit.errors) == {"norms", "estimate", "exact", "intake"}


def test_models_have_the_parameters_of_their_names(load: Load) -> None:
    sizes = {model.name: model.num_bytes / 2e9 for model in load("_scale_needs").MODELS}
    assert sizes == pytest.approx({"Llama-2-7B": 6.476, "Llama-3-70B": 68.45, "Llama-3.1-405B": 401.6}, rel=1e-3)
    assert [model.num_matrices for model in load("_scale_needs").MODELS] == [7 * 32, 7 * 80, 7 * 126]


def test_gpu_seconds_are_those_that_were_measured(load: Load) -> None:
    module = load("_scale_needs")
    for tier, seconds in module.H100_LLAMA_2_7B_SECONDS.items():
        model = module.MODELS[0]
        of_all = sum(count * module.gpu_matrix_seconds(shape, tier) for shape, count in model.matrices.items())
        assert of_all == pytest.approx(seconds), tier
    assert module.gpu_matrix_seconds((4096, 4096), "exact") == pytest.approx(module.H100_4096_EXACT_SECONDS)


def test_what_takes_longer_than_an_interval_is_not_promised(load: Load, fit: Any) -> None:
    module = load("_scale_needs")
    model = module.Model("one", {(1024, 1024): 10}, step_seconds=fit.measuring["exact"].seconds((1024, 1024)) / 100)
    assert module.measuring(fit, model, "exact", 99).slots is None
    enough = module.measuring(fit, model, "exact", 200)
    assert enough.slots == 10, "10 matrices, two of them in an interval, of a slot that is half used"


def test_more_processes_and_shorter_intervals_need_more(load: Load, fit: Any) -> None:
    module = load("_scale_needs")
    for model in module.MODELS:
        needs = {
            (processes, every): module.taking_in(fit, model, processes, every)
            for processes in module.PROCESSES
            for every in module.CADENCES
        }
        cores = [needs[processes, 100].cores for processes in module.PROCESSES]
        assert cores == sorted(cores) and cores[0] > needs[1, 1000].cores
        assert needs[8, 100].bits_per_second == pytest.approx(10 * needs[8, 1000].bits_per_second)
        assert needs[512, 100].num_messages == 512 * model.num_matrices, "each part fits into one chunk"
        assert all(need.bytes_spread <= need.bytes_at_once for need in needs.values())


def test_the_documentation_has_the_tables_that_are_printed() -> None:
    command = [sys.executable, str(BENCHMARKS / "scale.py"), "--markdown"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    assert printed.strip() in (ROOT / "docs" / "operations.md").read_text()


@pytest.mark.e2e
@pytest.mark.long
def test_a_small_load_is_pushed_measured_and_told(load: Load) -> None:
    script = (
        "import scale; from _scale_runs import lags, intake, costs; from _scale_load import Load, Setting\n"
        "seen = costs(Setting('exact', 1), {(64, 64): 4}); assert 0 < seen[64, 64] < 10\n"
        "sustained, tried, (lag,) = lags(Setting('norms', 1), 2, (64, 64), 0.2, (0.5,), 1.0)\n"
        "assert sustained == max(rate for _, rate in tried) > 0 and len(lag.ages) > 0 and min(lag.ages) >= 0\n"
        "told = intake('shards', Setting('norms', 1, tcp=True), 2, Load(4, (64, 64), 0.2), 1.0)\n"
        "assert told.came['messages'] > told.came['matrices'] > 0 and told.used.intake > 0\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=BENCHMARKS, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
