"""σ₁ between its bounds."""

import numpy as np
import pytest
import torch
from spectra import FAMILIES, made

from rankd.spectrum import norms
from rankd.spectrum.krylov import Operator, Recurrence, unit
from rankd.spectrum.norms import NormBounds, bound_norm, measure_norms

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])


def bounds_of(
    matrices: torch.Tensor, keys: list[str] | None = None, warm: list[torch.Tensor | None] | None = None
) -> tuple[NormBounds, torch.Tensor]:
    keys = keys or [f"layer {place}" for place in range(len(matrices))]
    return measure_norms(Operator(matrices), keys, warm or [None] * len(matrices))


def norms_of(matrices: torch.Tensor) -> list[float]:
    return [float(np.linalg.norm(matrix.double().cpu().numpy(), 2)) for matrix in matrices]


def assert_between(bounds: NormBounds, expected: list[float]) -> None:
    for value, low, high, norm in zip(bounds.value, bounds.low, bounds.high, expected, strict=True):
        assert float(low) <= norm <= float(high)
        assert float(low) <= float(value) <= float(high)


@devices
@pytest.mark.parametrize("shape", [(40, 40), (150, 60), (60, 200), (3, 500), (1, 9)])
@pytest.mark.parametrize("family", FAMILIES)
def test_bounds_hold(family: str, shape: tuple[int, int], device: str) -> None:
    whole = torch.stack([made(family, *shape, seed) for seed in range(4)]).to(device)
    for matrices in (whole, whole.float()):
        bounds, _ = bounds_of(matrices)
        assert_between(bounds, norms_of(matrices))
        assert float((bounds.high / bounds.low).max()) < 2.5, "a bound that says nothing holds, too"


@pytest.mark.parametrize("num_fresh", [1, 3])
@pytest.mark.parametrize("steps", [1, 3])
def test_the_upper_bound_fails_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch, steps: int, num_fresh: int) -> None:
    """Where there are as many other singular values as steps, a bound fails just where its probe's component along the
    leading one is below τ: the probability is p itself, but for the grid on which the bound is looked for."""
    size, num, failure, top = 400, 2000, 0.3, 1.2
    monkeypatch.setattr(norms, "FAILURE", failure)
    values = torch.tensor([1.0, 0.6, 0.3][:steps], dtype=torch.float64).repeat(size)[:size]
    values[0] = top
    probes = torch.randn(1, num * num_fresh, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    recurrence = Recurrence(Operator(torch.diag(values)[None]), unit(probes))
    recurrence.extend(steps)
    alphas, betas = (found.view(num, num_fresh, steps) for found in recurrence.coefficients())
    highs = bound_norm(alphas, betas, num_fresh, size, slack=0.0).high
    rate = float((highs < top).double().mean())
    assert failure * 0.4 < rate < failure + 0.02


@pytest.mark.parametrize("value", [1.0, 0.0173, 1 / 3])
@pytest.mark.parametrize("shape", [(64, 64), (200, 3000), (3000, 200), (2, 100_000)])
def test_bounds_hold_where_sums_are_of_equal_elements(shape: tuple[int, int], value: float) -> None:
    """Rounding then goes one way at each addition, and the largest Ritz value came out above σ₁."""
    matrix = torch.full((1, *shape), value)
    bounds, _ = bounds_of(matrix)
    expected = float(matrix[0, 0, 0]) * (shape[0] * shape[1]) ** 0.5
    assert_between(bounds, [expected])
    assert float(bounds.value[0]) == pytest.approx(expected, rel=1e-3)


@devices
def test_a_warm_start_is_sharp(device: str) -> None:
    before = made("gaussian", 150, 100)[None].to(device, torch.float32)
    true = norms_of(before)[0]
    vector: torch.Tensor | None = None
    errors = []
    for _ in range(6):
        bounds, vectors = bounds_of(before, warm=[vector])
        vector = vectors[0]
        errors.append(1 - float(bounds.value[0]) / true)
    assert errors[-1] < 1e-3 and errors[-1] < max(errors[0], 1e-5), "each one goes on from the last one's"


@pytest.mark.parametrize("seed", range(5))
def test_a_new_orthogonal_spike_is_inside_the_bounds(seed: int) -> None:
    """A warm start is blind to it: 4.06 with a residual of 1e-13, where the truth was 8.01."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(120, 2, dtype=torch.float64, generator=generator)).Q.T
    before = made("gaussian", 120, 150, seed)
    sides = torch.linalg.qr(torch.randn(150, 2, dtype=torch.float64, generator=generator)).Q.T
    before = before + 4 * torch.outer(axes[0], sides[0])
    vector: torch.Tensor | None = None
    for _ in range(3):
        _, vectors = bounds_of(before[None], ["w"], [vector])
        vector = vectors[0]
    after = before + 8 * torch.outer(axes[1], sides[1])
    bounds, _ = bounds_of(after[None], ["w"], [vector])
    assert_between(bounds, norms_of(after[None]))
    assert float(bounds.value[0]) > 7.9, "and the fresh probes find it"


def test_warm_starts_of_no_use_are_none() -> None:
    """Of another shape's, of zeros, and orthogonal to all there is."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, 0.0]))[None]
    for vector in (torch.ones(5), torch.zeros(3), torch.tensor([0.0, 0.0, 1.0])):
        bounds, vectors = bounds_of(matrix, ["w"], [vector])
        assert_between(bounds, [3.0])
        assert vectors.isfinite().all() and float(bounds.value[0]) == pytest.approx(3, rel=1e-5)


def test_others_in_the_batch_change_nothing() -> None:
    matrices = torch.stack(
        [made(family, 60, 90) for family in ("gaussian", "low_rank", "graded", "flat_spike")]
    ).float()
    keys = ["a", "b", "c", "d"]
    together, _ = bounds_of(matrices, keys)
    for place, key in enumerate(keys):
        alone, _ = bounds_of(matrices[place : place + 1], [key])
        assert float(alone.value[0]) == pytest.approx(float(together.value[place]), rel=1e-5)
        assert float(alone.high[0]) == pytest.approx(float(together.high[place]), rel=1e-2)  # a point of the grid


@pytest.mark.parametrize(
    "matrix", [torch.ones(1, 1), torch.eye(5), -torch.eye(3), torch.tensor([[0.0, 0.0], [7.0, 0.0]])]
)
def test_matrices_whose_recurrences_end_at_once(matrix: torch.Tensor) -> None:
    bounds, vectors = bounds_of(matrix[None])
    assert_between(bounds, norms_of(matrix[None]))
    assert vectors.isfinite().all()
