"""What any matrix at all becomes in every tier."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from spectra import made

from rankd.engine import Ask, WarmStarts, measure_matrices
from rankd.engine.measure import _batch
from rankd.metrics import METRICS, compute_metrics
from rankd.records import TIERS, Reading, Tier
from rankd.spectrum import measure_spectrum
from rankd.spectrum.estimate import MIN_SIZE
from rankd.summary import read_summary

N = 260
assert N >= MIN_SIZE


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def with_element(value: float) -> torch.Tensor:
    weight = normal(N, N)
    weight[3, 7] = value
    return weight


def one_element() -> torch.Tensor:
    weight = torch.zeros(N, N)
    weight[3, 7] = -2
    return weight


MATRICES = {
    "plain": normal(N, N),
    "float64": made("spiked", N, 300),
    "float16": normal(N, N).half(),
    "bfloat16": normal(N, N).bfloat16(),
    "float8_e4m3fn": normal(N, N).to(torch.float8_e4m3fn),
    "float8_e5m2": normal(N, N).to(torch.float8_e5m2),
    "int8": (30 * normal(N, N)).to(torch.int8),
    "bool": normal(N, N) > 0,
    "1e30": normal(N, N) * 1e30,
    "1e-30": normal(N, N) * 1e-30,
    "denormal": normal(N, N) * 1e-42,
    "the largest float32": torch.full((N, N), torch.finfo(torch.float32).max),
    "the largest float64": torch.full((N, N), torch.finfo(torch.float64).max, dtype=torch.float64),
    "1e200": normal(N, N).double() * 1e200,
    "1e-200": normal(N, N).double() * 1e-200,
    "the smallest float64": torch.eye(N, dtype=torch.float64) * 2.0**-1074,
    "600 decades": torch.diag(torch.logspace(-300, 300, N, dtype=torch.float64)),
    "one huge element": with_element(3e38),
    "1×n": normal(1, 300),
    "n×1": normal(300, 1),
    "1×1": normal(1, 1),
    "2×100000": normal(2, 100_000),
    "100000×2": normal(100_000, 2),
    "very wide": normal(MIN_SIZE, 5000),
    "very tall": normal(5000, MIN_SIZE),
    "one element": one_element(),
    "permutation": torch.eye(N)[torch.randperm(N, generator=torch.Generator().manual_seed(0))],
    "orthogonal": torch.linalg.qr(normal(N, N).double()).Q,
    "constant": torch.full((N, 300), 0.0173),
    "one row": torch.cat([normal(1, N), torch.zeros(N - 1, N)]),
    "low rank": normal(N, 3) @ normal(3, N, seed=1),
    "graded": made("graded", N, N).float(),
    "convolution": normal(N, 20, 3, 3),
    "transposed": normal(300, N).T,
    "with steps": normal(2 * N, 3 * N)[::2, ::3],
    "parameter": torch.nn.Parameter(normal(N, N)),
}
NOTHING = {
    "nan": with_element(math.nan),
    "inf": with_element(math.inf),
    "-inf": with_element(-math.inf),
    "bfloat16 nan": with_element(math.nan).bfloat16(),
    "float8 nan": with_element(math.nan).to(torch.float8_e4m3fn),
    "zero": torch.zeros(N, N),
    "no rows": torch.zeros(0, N),
    "no columns": torch.zeros(N, 0),
}
WIRES = (("float32", "float32"), ("bfloat16", "float32"), ("int8", "bfloat16"), ("float8_e5m2", "float32"), ("?", ""))


def measure(weight: torch.Tensor, tier: Tier = "exact", **asked: Any) -> Reading:
    (reading,) = measure_matrices([weight], [Ask(tier, "k", **asked)])
    return reading


def assert_sound(reading: Reading) -> None:
    """Every number finite or None, every metric there, every value inside its bar."""
    json.dumps([dict(reading.metrics), dict(reading.bars), dict(reading.further), reading.extra()], allow_nan=False)
    assert list(reading.metrics) == list(METRICS)
    for name, (low, high) in reading.bars.items():
        value = reading.metrics[name]
        assert value is not None and low <= value <= high, (name, low, value, high)
    assert {"wire_noise_floor", "source_noise_floor"} <= set(reading.further)
    assert reading.seconds > 0


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", MATRICES | NOTHING)
def test_no_matrix_gives_an_unsound_row(name: str, tier: Tier) -> None:
    weight = (MATRICES | NOTHING)[name]
    for wire, source in WIRES:
        assert_sound(measure(weight, tier, wire_dtype=wire, source_dtype=source))


@pytest.mark.parametrize("tier", ["norms", "estimate"])
@pytest.mark.parametrize("name", MATRICES)
def test_every_tier_agrees_with_the_whole_spectrum(name: str, tier: Tier) -> None:
    """A bar of 95 % may miss by as much again; what has none is exact."""
    weight = MATRICES[name].detach()
    expected = compute_metrics(measure_spectrum(weight))
    reading = measure(weight, tier)
    assert reading.finite and not reading.zero
    for metric, value in reading.metrics.items():
        true = expected[metric]
        if value is None or true is None:
            continue
        low, high = reading.bars.get(metric, (value, value))
        spare = (high - low if reading.tier == "estimate" else 0) + 3e-6 * true
        assert low - spare <= true <= high + spare, metric


@pytest.mark.parametrize("tier", TIERS)
@pytest.mark.parametrize("name", NOTHING)
def test_where_there_is_nothing_to_measure_every_tier_says_the_same(name: str, tier: Tier) -> None:
    weight = NOTHING[name]
    reading = measure(weight, tier)
    assert reading.tier == "exact" and not reading.bars and reading.summary == b""
    finite = "nan" not in name and "inf" not in name
    assert reading.finite is finite
    assert reading.zero is (name == "zero")
    assert set(reading.metrics.values()) == ({0.0} if finite else {None})


def test_the_norms_tier_says_nothing_of_the_rest() -> None:
    reading = measure(MATRICES["plain"], "norms")
    known = {name for name, value in reading.metrics.items() if value is not None}
    assert known == {"frobenius_norm", "spectral_norm", "stable_rank"}
    assert set(reading.bars) == {"spectral_norm", "stable_rank", "frobenius_norm"}
    assert (reading.tier, reading.method, reading.summary) == ("norms", "golub_kahan_cpu", b"")
    assert reading.extra()["tier"] == "norms" and "spectral_norm_low" in reading.extra()


def test_an_estimate_says_how_good_it_is() -> None:
    reading = measure(MATRICES["plain"], "estimate")
    assert (reading.tier, reading.method) == ("estimate", "hutch_golub_kahan_cpu")
    unknown = {name for name, value in reading.metrics.items() if value is None}
    assert unknown == {"num_above_mp_edge"}
    assert set(reading.bars) == set(METRICS) - unknown
    low, high = reading.bars["effective_rank"]
    assert 0 < high - low < 0.1 * low


def test_an_exact_reading_has_no_bars_and_a_bound_of_its_error() -> None:
    reading = measure(MATRICES["plain"])
    assert not reading.bars and reading.tier == "exact"
    assert 0 < reading.further["error_bound"] < 1e-10
    assert sum(read_summary(reading.summary).counts) == N


@pytest.mark.parametrize(
    ("weight", "asked"),
    [
        (MATRICES["graded"], {}),
        (MATRICES["plain"], {"tolerance": 1e-6}),
        (MATRICES["plain"], {"reference": True}),
        (normal(MIN_SIZE - 1, 500), {}),
        (MATRICES["low rank"], {"wire_dtype": "bfloat16"}),
        (MATRICES["1×n"], {}),
    ],
    ids=["wide bar", "small tolerance", "reference", "small", "noise", "row"],
)
def test_what_an_estimate_cannot_answer_is_exact_by_itself(weight: torch.Tensor, asked: dict[str, Any]) -> None:
    reading = measure(weight, "estimate", **asked)
    assert reading.tier == "exact" and "hutch" not in reading.method
    assert reading.metrics == measure(weight, "exact", **asked).metrics
    assert (reading.method == "svdvals_float64") or not asked.get("reference")


def test_asks_of_several_tiers_and_dtypes_at_once() -> None:
    """Matrices of one shape, of scales 60 decades apart, one of them NaN and one zero: each has its own answer."""
    weights = [
        normal(N, N, seed=1),
        normal(N, N, seed=2) * 1e30,
        normal(N, N, seed=3) * 1e-30,
        NOTHING["nan"],
        NOTHING["zero"],
        normal(N, N, seed=4),
        MATRICES["low rank"],
    ]
    asks = [
        Ask("estimate", "a", "bfloat16", "float32"),
        Ask("estimate", "b"),
        Ask("norms", "c", "int8", "float32"),
        Ask("norms", "d"),
        Ask("estimate", "e"),
        Ask("exact", "f", "float8_e4m3fn", "bfloat16"),
        Ask("estimate", "g", "bfloat16", "bfloat16"),
    ]
    readings = measure_matrices(weights, asks)
    tiers = [reading.tier for reading in readings]
    assert tiers == ["estimate", "estimate", "norms", "exact", "exact", "exact", "estimate"]
    for weight, ask, reading in zip(weights, asks, readings, strict=True):
        assert_sound(reading)
        (alone,) = measure_matrices([weight], [ask])
        assert (alone.method, alone.further, alone.finite) == (reading.method, reading.further, reading.finite)
        for name, value in alone.metrics.items():
            expected = reading.metrics[name]
            assert value == (None if expected is None else pytest.approx(expected, rel=1e-5))


def test_no_matrices_no_readings() -> None:
    assert measure_matrices([], []) == []


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(2, 2, dtype=torch.complex64)])
@pytest.mark.parametrize("tier", TIERS)
def test_what_is_no_matrix_is_refused(weight: torch.Tensor, tier: Tier) -> None:
    with pytest.raises(ValueError, match="expected real and two or more"):
        measure(weight, tier)


def test_seconds_are_of_the_clock() -> None:
    ticks = iter(range(1000))
    readings = measure_matrices(
        [normal(N, N)] * 3, [Ask("norms", "a"), Ask("estimate", "b"), Ask("exact")], clock=lambda: float(next(ticks))
    )
    assert [reading.seconds for reading in readings] == [1, 1, 1]


def test_the_norms_tier_goes_on_from_the_last_time() -> None:
    weight, warm = normal(N, N), WarmStarts()
    true = measure(weight).metrics["spectral_norm"]
    assert true is not None
    errors = []
    for _ in range(8):
        (reading,) = measure_matrices([weight], [Ask("norms", "layer")], warm)
        value = reading.metrics["spectral_norm"]
        assert value is not None
        errors.append(true - value)
    assert errors[-1] < 0.5 * errors[0]


@pytest.mark.parametrize("scale", [1.0, 1e30, 1e-30])
def test_an_estimate_has_a_summary_to_look_at(scale: float) -> None:
    weight = made("spiked", N, 300).float() * scale
    found, expected = read_summary(measure(weight, "estimate").summary), read_summary(measure(weight).summary)
    assert found.top == pytest.approx(expected.top[:1], rel=1e-2)
    assert found.high == pytest.approx(expected.high, abs=1e-3)
    assert sum(found.counts) == sum(expected.counts) == N
    # Half of all values lie below about the same level.
    middles = []
    for summary in (found, expected):
        edges = np.linspace(summary.low, summary.high, len(summary.counts) + 1)
        middles.append(np.interp(N / 2, np.cumsum([0, *summary.counts]), edges))
    assert middles[0] == pytest.approx(middles[1], abs=0.15)
    assert expected.low - 1.0 <= found.low <= expected.low + 0.3


def test_a_batch_has_what_can_be_measured_in_units_near_its_size() -> None:
    """As a GPU has them. Powers of two, so that nothing is rounded; none where all are of ordinary size."""
    weights = [normal(3, 4), normal(3, 4) * 1e30, torch.full((3, 4), math.nan), torch.zeros(3, 4), normal(3, 4) * 1e-42]
    asks = [Ask("norms", str(place)) for place in range(5)]
    kept, batch = _batch(list(range(5)), weights, asks)
    assert kept == [0, 1, 4] and [ask.key for ask in batch.asks] == ["0", "1", "4"]
    assert (np.exp2(np.round(np.log2(batch.scales))) == batch.scales).all()
    for place, matrix, scale in zip(kept, batch.matrices, batch.scales.tolist(), strict=True):
        assert 1 <= float(matrix.abs().max()) < 2
        assert torch.equal((matrix.double() * scale).float(), weights[place])
    kept, batch = _batch([0, 3], weights, asks)
    assert kept == [0] and batch.scales.tolist() == [1] and torch.equal(batch.matrices[0], weights[0])
    assert _batch([2, 3], weights, asks) == ([], None)
