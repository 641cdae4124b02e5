"""Named numbers of known spectra."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankd.metrics import (
    EXTRA_METRICS,
    METRICS,
    compute_metrics,
    compute_rank_stats,
    random_effective_rank,
    random_stable_rank,
)
from rankd.records import Spectrum
from rankd.spectrum import measure_spectrum

RATIOS = ("stable_rank", "effective_rank", "effective_rank_energy", "participation_ratio")


def spectrum_of(*values: float, scale: float = 1.0) -> Spectrum:
    return Spectrum(len(values), len(values), np.array(values), scale, "test")


@pytest.mark.parametrize("values", [[1.0] * 12, [1.0] * 12 + [0.0] * 3])
def test_equal_singular_values_follow_no_power_law(values: list[float]) -> None:
    pytest.importorskip("powerlaw")
    assert compute_metrics(spectrum_of(*values), ["power_law_alpha"])["power_law_alpha"] is None


def test_values_by_hand() -> None:
    metrics = compute_metrics(spectrum_of(2.0, 1.0, 1.0, scale=3.0))
    assert metrics["stable_rank"] == pytest.approx(6 / 4)
    assert metrics["effective_rank"] == pytest.approx(2**1.5)  # entropy of (1/2, 1/4, 1/4): 1.5 log 2
    assert metrics["effective_rank_energy"] == pytest.approx(math.exp(math.log(6) - 4 / 6 * math.log(4)))
    assert metrics["participation_ratio"] == pytest.approx(36 / 18)
    assert metrics["spectral_norm"] == pytest.approx(6.0)
    assert metrics["frobenius_norm"] == pytest.approx(3 * math.sqrt(6))
    assert metrics["nuclear_norm"] == pytest.approx(12.0)
    assert metrics["effective_rank_ratio"] == pytest.approx(2**1.5 / random_effective_rank(3, 3))
    assert metrics["stable_rank_ratio"] == pytest.approx(1.5), "no matrix has a stable rank below 1"
    assert set(metrics) == set(METRICS)


@given(
    st.lists(st.floats(0, 1), max_size=20).map(lambda rest: sorted([1.0, *rest], reverse=True)),
    st.floats(1e-300, 1e300),
)
def test_ratios_stay_in_bounds_and_do_not_depend_on_scale(values: list[float], scale: float) -> None:
    metrics = compute_metrics(spectrum_of(*values, scale=scale))
    for name in ("effective_rank_ratio", "stable_rank_ratio", "num_above_mp_edge"):
        assert metrics[name] == compute_metrics(spectrum_of(*values))[name]
    for name in RATIOS:
        value = metrics[name]
        assert value is not None
        assert 1.0 - 1e-12 <= value <= len(values) * (1 + 1e-12)
        assert value == compute_metrics(spectrum_of(*values))[name]


@pytest.mark.parametrize("size", [1, 3, 64])
def test_identity_is_full_and_a_product_is_one(size: int) -> None:
    identity = compute_metrics(measure_spectrum(torch.eye(size)))
    outer = compute_metrics(measure_spectrum(torch.outer(torch.arange(1.0, size + 1), torch.ones(size))))
    for name in RATIOS:
        assert identity[name] == pytest.approx(size)
        assert outer[name] == pytest.approx(1.0, abs=1e-3)


def test_zero_empty_and_non_finite() -> None:
    assert compute_metrics(measure_spectrum(torch.zeros(3, 2))) == dict.fromkeys(METRICS, 0.0)
    assert compute_metrics(measure_spectrum(torch.zeros(0, 2))) == dict.fromkeys(METRICS, 0.0)
    assert compute_metrics(measure_spectrum(torch.full((3, 2), math.nan))) == dict.fromkeys(METRICS)


def test_a_norm_that_overflows_is_none() -> None:
    metrics = compute_metrics(measure_spectrum(torch.full((4, 4), 1.7e308, dtype=torch.float64)))
    assert metrics["spectral_norm"] is None
    assert metrics["frobenius_norm"] is None
    assert metrics["nuclear_norm"] is None
    assert metrics["stable_rank"] == pytest.approx(1.0)


def gaussian(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(300, 300), (100, 400), (400, 100), (30, 900), (1, 50), (50, 1)])
def test_what_is_expected_of_random_matrices(shape: tuple[int, int]) -> None:
    """Against sampled ones: the laws are those of large matrices, and σ₁ of small ones is a little below its limit."""
    metrics = compute_metrics(measure_spectrum(gaussian(*shape)))
    assert metrics["effective_rank"] == pytest.approx(random_effective_rank(*shape), rel=0.01)
    assert metrics["effective_rank_ratio"] == pytest.approx(1, rel=0.01)
    if min(shape) > 1:
        assert metrics["stable_rank_ratio"] == pytest.approx(1, rel=0.1)
    assert random_effective_rank(*shape) == random_effective_rank(*shape[::-1]) <= min(shape)
    assert random_stable_rank(*shape) == random_stable_rank(*shape[::-1]) <= min(shape)


def test_a_ratio_needs_no_size() -> None:
    small, large = (compute_metrics(measure_spectrum(gaussian(size, 2 * size)[:, : size // 2])) for size in (100, 400))
    for name in ("effective_rank_ratio", "stable_rank_ratio"):
        assert small[name] == pytest.approx(large[name], rel=0.1)
    half = gaussian(400, 400)
    half[200:] = 0
    ratio = compute_metrics(measure_spectrum(half))["effective_rank_ratio"]
    assert ratio is not None and ratio < 0.65


@pytest.mark.parametrize("shape", [(200, 200), (100, 400), (400, 100)])
def test_what_stands_out_above_the_edge(shape: tuple[int, int]) -> None:
    for seed in range(10):
        noise = gaussian(*shape, seed)
        assert compute_metrics(measure_spectrum(noise))["num_above_mp_edge"] == 0
        edge = math.sqrt(shape[0]) + math.sqrt(shape[1])
        left, right = (torch.linalg.qr(gaussian(size, 3, seed + 100)).Q for size in shape)
        spiked = noise + edge * (left * torch.tensor([2.0, 1.5, 1.2])) @ right.T
        assert compute_metrics(measure_spectrum(spiked))["num_above_mp_edge"] == 3


@pytest.mark.parametrize("shape", [(64, 64), (30, 120)])
def test_of_many_random_matrices_none_stands_out(shape: tuple[int, int]) -> None:
    """One in a hundred is more than half of r^(-2/3) above the edge."""
    generator, found = torch.Generator().manual_seed(1), []
    for _ in range(400):
        noise = measure_spectrum(torch.randn(*shape, generator=generator))
        found.append(compute_metrics(noise)["num_above_mp_edge"])
    assert sum(value != 0 for value in found) <= 1


@pytest.mark.parametrize(("widths", "expected"), [(1.5, 0), (2.5, 1)])
def test_how_far_above_the_edge_is_beyond_chance(widths: float, expected: int) -> None:
    size = 64
    ratio = 1 + widths / size ** (2 / 3)  # to the edge, which the spike is part of
    rest = np.linspace(1.5, 0.1, size - 1)
    spike = 2 * ratio * math.sqrt(float(np.sum(rest**2)) / (size - 4 * ratio**2))
    assert compute_metrics(spectrum_of(spike, *rest))["num_above_mp_edge"] == expected


def test_a_metric_is_a_function_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def condition(spectrum: Spectrum) -> float:
        return float(spectrum.singular_values[0] / spectrum.singular_values[-1])

    monkeypatch.setitem(METRICS, "condition", condition)
    monkeypatch.setitem(EXTRA_METRICS, "num_values", lambda spectrum: float(len(spectrum.singular_values)))
    metrics = compute_metrics(spectrum_of(8.0, 4.0, 2.0))
    assert metrics["condition"] == 4 and "num_values" not in metrics
    assert compute_metrics(spectrum_of(8.0, 4.0, 2.0), ["num_values"])["num_values"] == 3
    # Infinity never stands in JSON, nor is there anything to be called for in a matrix of zeros or with NaN.
    assert compute_metrics(spectrum_of(3.0, 2.0, scale=1e308))["nuclear_norm"] is None
    assert compute_metrics(measure_spectrum(torch.zeros(2, 2)), ["num_values"])["num_values"] == 0
    assert compute_metrics(measure_spectrum(torch.full((2, 2), math.inf)), ["num_values"])["num_values"] is None
    with pytest.raises(KeyError):
        compute_metrics(spectrum_of(1.0), ["unheard_of"])


@pytest.mark.filterwarnings("default")  # the package's own are not ours to mend
@pytest.mark.parametrize("alpha", [2.0, 5.0])
def test_power_law_alpha(alpha: float) -> None:
    pytest.importorskip("powerlaw")
    # Quantiles of a density ∝ λ^-α on λ ≥ 1.
    quantiles = (np.arange(400) + 0.5) / 400
    energy = quantiles ** (-1 / (alpha - 1))
    spectrum = spectrum_of(*np.sqrt(energy))
    assert compute_metrics(spectrum, ["power_law_alpha"])["power_law_alpha"] == pytest.approx(alpha, rel=0.05)
    assert compute_metrics(spectrum_of(*range(5, 0, -1)), ["power_law_alpha"])["power_law_alpha"] is None
    assert set(EXTRA_METRICS) == {"power_law_alpha"} and not set(EXTRA_METRICS) & set(METRICS)


def test_compute_rank_stats() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
        model[1].weight.copy_(torch.ones(4, 4))
    stats = compute_rank_stats(model)
    assert set(stats) == {
        f"{metric}/{name}"
        for metric in ("stable_rank", "effective_rank")
        for name in ("0.weight", "1.weight", "mean", "min")
    }
    for metric in ("stable_rank", "effective_rank"):
        assert stats[f"{metric}/0.weight"] == pytest.approx(4.0)
        assert stats[f"{metric}/1.weight"] == pytest.approx(1.0, abs=1e-3)
        assert stats[f"{metric}/mean"] == pytest.approx(2.5, abs=1e-3)
        assert stats[f"{metric}/min"] == stats[f"{metric}/1.weight"]
    assert all(type(value) is float for value in stats.values())


def test_compute_rank_stats_without_matrices_and_with_bad_ones() -> None:
    zeros = dict.fromkeys(("stable_rank/mean", "stable_rank/min", "effective_rank/mean", "effective_rank/min"), 0.0)
    assert compute_rank_stats(torch.nn.LayerNorm(3)) == zeros
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
        model[1].weight.copy_(torch.eye(2))
    stats = compute_rank_stats(model)
    assert math.isnan(stats["stable_rank/0.weight"])
    assert stats["stable_rank/mean"] == stats["stable_rank/min"] == pytest.approx(2.0)
    with torch.no_grad():
        model[1].weight.fill_(math.inf)
    assert math.isnan(compute_rank_stats(model)["effective_rank/mean"])


def test_compute_rank_stats_names_tied_and_wrapped() -> None:
    model = torch.nn.ModuleDict({"module": torch.nn.ModuleDict({"_orig_mod": torch.nn.Linear(3, 3)})})
    model["tied"] = torch.nn.Linear(3, 3)
    model["tied"].weight = model["module"]["_orig_mod"].weight
    layers = {key.removeprefix("stable_rank/") for key in compute_rank_stats(model) if key.startswith("stable_rank/")}
    assert layers == {"module.weight", "mean", "min"}  # "module" is no wrapper here: "tied" stands beside it
    layers = {key.removeprefix("stable_rank/") for key in compute_rank_stats(torch.nn.ModuleDict({"module": model}))}
    assert {"module.weight"} <= layers


def test_compute_rank_stats_refuses_two_layers_of_one_name() -> None:
    model = torch.nn.ModuleDict({"_orig_mod": torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3)})})
    model["a"] = torch.nn.Linear(3, 3)
    with pytest.raises(ValueError, match=r"'_orig_mod\.a\.weight' and 'a\.weight' are both called 'a\.weight'"):
        compute_rank_stats(model)
