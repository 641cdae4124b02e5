"""Estimates, their bars, and how sharp changes are."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from spectra import made

from rankd.metrics import METRICS
from rankd.spectrum import measure_spectrum
from rankd.spectrum.estimate import GOOD_BAR, MIN_SIZE, Estimates, estimate
from rankd.spectrum.krylov import Operator

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

RANKS = ("effective_rank", "effective_rank_energy", "participation_ratio", "stable_rank")
NAMES = (*RANKS, "nuclear_norm", "spectral_norm")
SHAPE = (128, 160)


def estimates(matrices: torch.Tensor, keys: list[str] | None = None, tolerance: float = 0.05) -> Estimates:
    frobenius = torch.linalg.matrix_norm(matrices.double()).cpu().numpy()
    keys = keys or [f"layer {place}" for place in range(len(matrices))]
    return estimate(Operator(matrices), frobenius, keys, [tolerance] * len(matrices))


def truths(matrices: torch.Tensor) -> dict[str, npt.NDArray[np.float64]]:
    spectra = [measure_spectrum(matrix) for matrix in matrices.cpu()]
    return {name: np.array([METRICS[name](spectrum) for spectrum in spectra]) for name in NAMES}


def batch(family: str, count: int, shape: tuple[int, int] = SHAPE, first: int = 0) -> torch.Tensor:
    return torch.stack([made(family, *shape, seed) for seed in range(first, first + count)]).float()


FAMILIES = ("gaussian", "spiked", "low_rank_noise", "power_half", "low_rank", "flat_spike", "two_clusters")


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("family", FAMILIES)
def test_bars_cover(family: str, device: str) -> None:
    """95 of 100 each, so that 4 misses or fewer of 24 are to be expected 99.4 times of 100: seeds are fixed."""
    matrices = batch(family, 24).to(device)
    found, expected = estimates(matrices), truths(matrices)
    assert set(found.values) == set(found.lows) == set(found.highs) == set(NAMES)
    for name in NAMES:
        low, high, value = found.lows[name], found.highs[name], found.values[name]
        assert (low <= value).all() and (value <= high).all()
        covered = (low <= expected[name] * (1 + 1e-9)) & (expected[name] * (1 - 1e-9) <= high)
        assert covered.sum() >= 20, (name, value / expected[name])
    assert float(np.median(found.width)) <= 0.02


@pytest.mark.parametrize("shape", [(400, 160), (160, 400), (160, 160)])
def test_spikes_and_a_bulk_of_any_shape(shape: tuple[int, int]) -> None:
    matrices = batch("spiked", 2, shape)
    found, expected = estimates(matrices), truths(matrices)
    np.testing.assert_allclose(found.values["effective_rank"], expected["effective_rank"], rtol=0.02)
    np.testing.assert_allclose(found.values["participation_ratio"], expected["participation_ratio"], rtol=0.02)
    # How many lie above a level.
    assert (np.diff(found.curve, axis=1) <= 1e-9).all() and found.curve[0, 0] == pytest.approx(160, rel=1e-2)


def test_the_same_key_gives_the_same_numbers() -> None:
    matrices = batch("gaussian", 1).repeat(2, 1, 1)
    first, second = estimates(matrices, ["a", "b"]), estimates(matrices, ["a", "b"])
    for name in NAMES:
        np.testing.assert_array_equal(first.values[name], second.values[name])
        np.testing.assert_array_equal(first.highs[name], second.highs[name])
    assert first.values["effective_rank"][0] != first.values["effective_rank"][1]


@pytest.mark.parametrize("family", ["gaussian", "spiked", "power_half", "low_rank_noise"])
def test_changes_are_sharper_than_levels(family: str) -> None:
    """The error of a log change is at most a fifth of the bar's half-width, as detectors need it: the change is 1 % of
    another matrix of the kind."""
    before = batch(family, 6)
    after = before + 0.01 * batch(family, 6, first=100)
    old, new = estimates(before), estimates(after)
    error = np.log(new.values["effective_rank"] / old.values["effective_rank"])
    error -= np.log(truths(after)["effective_rank"] / truths(before)["effective_rank"])
    assert np.median(np.abs(error) / old.width) <= 0.2


def test_others_in_the_batch_change_nothing() -> None:
    """Easy ones are done after few steps, hard ones go on, and hopeless ones give up: each as if it were alone."""
    families = ("gaussian", "power_half", "power_1", "low_rank", "graded", "flat_spike")
    matrices = torch.cat([batch(family, 1) for family in families])
    together = estimates(matrices, list(families))
    for place, family in enumerate(families):
        alone = estimates(matrices[place : place + 1], [family])
        for name in NAMES:
            # Rounding differs, and where it is all there is below the leading values, so does what is made of it.
            bar = together.highs[name][place] - together.lows[name][place]
            off = abs(alone.values[name][0] - together.values[name][place])
            assert off <= 1e-4 * together.values[name][place] + 0.02 * bar, (family, name)


def test_a_tolerance_is_each_matrix_own() -> None:
    """A hopeless one is given up as soon as it is known to be, whatever is tolerated of another."""
    hard = batch("power_1", 1, (256, 256))
    pair = torch.cat([hard, hard])
    norms = torch.linalg.matrix_norm(pair.double()).numpy()
    both = estimate(Operator(pair), norms, ["k", "k"], [1e-9, 0.05])
    assert both.width[0] > both.width[1]
    assert both.width[0] == pytest.approx(estimate(Operator(hard), norms[:1], ["k"], [1e-9]).width[0], rel=1e-2)


def test_a_heavy_tail_has_a_wide_bar_and_not_a_wrong_one() -> None:
    matrices = batch("graded", 6)
    found, expected = estimates(matrices), truths(matrices)
    assert (found.width > 2 * GOOD_BAR).all()
    assert (found.lows["effective_rank"] <= expected["effective_rank"]).all()
    assert (expected["effective_rank"] <= found.highs["effective_rank"]).all()


@pytest.mark.parametrize("shape", [(128, 128), (200, 200), (130, 2000)])
@pytest.mark.parametrize("value", [1.0, 0.0173])
def test_sums_of_equal_elements(value: float, shape: tuple[int, int]) -> None:
    """Of one singular value. Rounding of Σλ was made 36 times as large in the entropy of λ."""
    found = estimates(torch.full((1, *shape), value))
    sigma = float(torch.tensor(value)) * math.sqrt(math.prod(shape))
    for name in NAMES:
        true = sigma if name.endswith("norm") else 1.0
        assert found.lows[name][0] <= true <= found.highs[name][0], name
        assert found.values[name][0] == pytest.approx(true, rel=1e-3)


@pytest.mark.parametrize("name", ["identity", "permutation", "orthogonal"])
def test_equal_singular_values(name: str) -> None:
    size = MIN_SIZE
    matrix = {
        "identity": torch.eye(size),
        "permutation": torch.eye(size)[torch.randperm(size, generator=torch.Generator().manual_seed(0))],
        "orthogonal": torch.linalg.qr(made("gaussian", size, size)).Q.float(),
    }[name]
    found = estimates(matrix[None])
    for metric in ("effective_rank", "effective_rank_energy", "participation_ratio", "nuclear_norm"):
        assert found.lows[metric][0] <= size * (1 + 1e-6) and size * (1 - 1e-6) <= found.highs[metric][0]
        assert found.values[metric][0] == pytest.approx(size, rel=1e-3)


def test_one_element() -> None:
    matrix = torch.zeros(1, *SHAPE)
    matrix[0, 3, 7] = -2
    found = estimates(matrix)
    assert found.lows["effective_rank"][0] <= 1 <= found.highs["effective_rank"][0]
    assert found.values["spectral_norm"][0] == pytest.approx(2, rel=1e-5)
