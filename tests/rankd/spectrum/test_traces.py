"""Traces against closed forms: with as many steps as there are singular values a quadrature is exact."""

import itertools
import math

import pytest
import torch

from rankd.spectrum.krylov import Operator, Recurrence, draw, unit
from rankd.spectrum.traces import Traces, read_traces

VALUES = torch.tensor([0.8, 0.4, 0.3, 0.2, 0.1, 0.03], dtype=torch.float64)


def read(values: torch.Tensor, steps: int, starts: torch.Tensor | None = None) -> tuple[Traces, torch.Tensor]:
    """Of a diagonal matrix, from each of its axes unless other `starts` (1, k, r) are given; and the starts."""
    operator = Operator(torch.diag(values)[None])
    starts = torch.eye(len(values), dtype=torch.float64)[None] if starts is None else starts
    recurrence = Recurrence(operator, starts)
    recurrence.extend(steps)
    return read_traces(*recurrence.coefficients()), starts


def random_starts(values: torch.Tensor) -> torch.Tensor:
    return unit(draw(["k"], 5, len(values), Operator(torch.diag(values)[None])))


def test_of_single_values() -> None:
    traces, _ = read(VALUES, 1)
    energy = VALUES**2
    torch.testing.assert_close(traces.first[0], energy)
    torch.testing.assert_close(traces.second[0], energy**2)
    torch.testing.assert_close((traces.upper @ traces.root)[0], VALUES, rtol=1e-6, atol=0)
    torch.testing.assert_close((traces.upper @ traces.root_log)[0], VALUES * energy.log(), rtol=1e-5, atol=1e-6)
    known = (traces.linear / (1 + traces.y.exp())).sum() * energy
    torch.testing.assert_close(known - (traces.upper @ traces.linear)[0], energy * energy.log(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("count", [1, 3, 6])
def test_of_all_lanczos_steps(count: int) -> None:
    values = VALUES[:count]
    traces, starts = read(values, count, random_starts(values))
    shares = starts[0] ** 2  # (k, r)
    expected = shares @ (values**2 / (values**2 + traces.y.exp()[:, None])).T
    torch.testing.assert_close(traces.upper[0], expected, rtol=1e-7, atol=1e-12)
    torch.testing.assert_close((traces.upper @ traces.root)[0], shares @ values, rtol=1e-6, atol=0)


def test_all_starts_together_give_the_trace() -> None:
    """Of an orthonormal basis, whatever it is."""
    basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q[None]
    traces, _ = read(VALUES, 6, basis)
    assert float((traces.upper @ traces.root).sum()) == pytest.approx(float(VALUES.sum()), rel=1e-6)
    assert float(traces.first.sum()) == pytest.approx(float((VALUES**2).sum()), rel=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5])
def test_the_truth_lies_between_the_two_rules(steps: int) -> None:
    traces, starts = read(VALUES, steps, random_starts(VALUES))
    expected = starts[0] ** 2 @ (VALUES**2 / (VALUES**2 + traces.y.exp()[:, None])).T
    assert (traces.upper[0] >= expected - 1e-13).all() and (traces.lower[0] <= expected + 1e-13).all()
    assert float((traces.upper - traces.lower).max()) > 1e-3, "too few steps say so"
    assert ((traces.lower <= traces.middle + 1e-13) & (traces.middle <= traces.upper + 1e-13)).all()


def test_more_steps_bring_the_rules_together() -> None:
    starts = random_starts(VALUES)
    gaps = [
        float((found.upper - found.lower).sum()) for found, _ in (read(VALUES, steps, starts) for steps in range(1, 7))
    ]
    assert all(later < former for former, later in itertools.pairwise(gaps))


def test_a_start_that_sees_nothing_has_no_trace() -> None:
    values = torch.tensor([1.0, 0.0], dtype=torch.float64)
    traces, _ = read(values, 4)
    assert not traces.upper[0, 1].any() and not traces.lower[0, 1].any() and float(traces.first[0, 1]) == 0
    assert float((traces.upper @ traces.root)[0, 0]) == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("value", [1.0, 1e-3, 1e-6])
def test_small_values_are_within_reach(value: float) -> None:
    """Integrals end at e^{-18} of σ₁ = 1: what is missing of σ is about that, absolutely."""
    traces, _ = read(torch.tensor([value], dtype=torch.float64), 1)
    assert float(traces.upper @ traces.root) == pytest.approx(value, abs=2 / math.pi * 1.6e-8, rel=1e-6)
