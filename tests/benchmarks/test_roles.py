"""The benchmark of roles: its trainings give what it says, and its numbers are the daemon's."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest
import torch

from rankd import compute_effective_rank

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(autouse=True)
def found(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # two are many times slower where cores are busy
    yield
    torch.set_num_threads(num_threads)


def test_each_training_has_weights_features_gradients_and_updates_of_every_check() -> None:
    from _roles_runs import MAKERS, train

    torch.manual_seed(1)
    names = set()
    for make in MAKERS:
        run = make(1)
        names.add(run.name)
        for _, tensors in islice(train(run), 1):
            assert {role for _, role in tensors} == {"weight", "feature", "gradient", "update"}, run.name
            assert all(tensor.ndim >= 2 for tensor in tensors.values())
    assert len(names) == len(MAKERS) and sum("collapse" in name for name in names) == 3


def test_what_it_measures_is_what_a_daemon_would() -> None:
    from roles import measure

    values = torch.randn(12, 8, generator=torch.Generator().manual_seed(1))
    row = measure("r", 3, "w", "feature", values)
    assert row.metrics["effective_rank"] == pytest.approx(compute_effective_rank(values), rel=1e-5)
    assert (row.role, row.shape, row.zero) == ("feature", (12, 8), False)
    assert measure("r", 3, "w", "feature", torch.zeros(2, 2)).zero
    assert not measure("r", 3, "w", "feature", torch.full((2, 2), float("nan"))).finite
    sys.modules.pop("roles", None)
