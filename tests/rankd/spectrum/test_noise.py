"""Floors against the norms of real rounding errors, and what shrinking leaves."""

import math

import numpy as np
import pytest
import torch
from rounded import CASTS, rounded

from rankd.spectrum.noise import ROUNDINGS, Sizes, adds_noise, floors, is_scaled, measure_sizes, shrink
from rankd_client.wire import DTYPES


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def floor_of(weight: torch.Tensor, dtype: str, of: str | None = None, scale: float = 1.0) -> float:
    _, sizes = measure_sizes(weight[None] / scale, scaled=True)
    return float(floors(sizes, dtype, np.array([scale]), of)[0]) * scale


def test_every_dtype_of_the_wire_is_known() -> None:
    assert {name for name, dtype in DTYPES.items() if not dtype.reserved} <= set(ROUNDINGS) <= set(DTYPES)


@pytest.mark.parametrize(
    ("wire", "source", "adds"),
    [
        *((dtype, dtype, False) for dtype in ROUNDINGS),
        *((dtype, "float32", True) for dtype in CASTS),
        *((dtype, "float64", True) for dtype in ("float32", *CASTS)),
        *(("float32", dtype, False) for dtype in CASTS),
        ("bfloat16", "float16", True),  # fewer bits
        ("float16", "bfloat16", True),  # a smaller range
        ("float8_e5m2", "float8_e4m3fn", True),
        ("float8_e4m3fn", "float8_e5m2", True),
        ("bfloat16", "float8_e5m2", False),
        ("float16", "float8_e4m3fn", False),
        ("int8", "bfloat16", True),
        ("bfloat16", "int8", False),
        ("float8_e4m3fn", "int8", True),
        ("float32", "", False),
        ("", "float32", False),
        ("bfloat16", "unheard_of", False),
    ],
)
def test_what_adds_noise(wire: str, source: str, adds: bool) -> None:
    assert adds_noise(wire, source) is adds
    assert (floor_of(normal(8, 5), wire, source) > 0) is adds


@pytest.mark.parametrize("shape", [(300, 300), (64, 500), (500, 64)])
@pytest.mark.parametrize("dtype", CASTS)
@pytest.mark.parametrize("kind", ["plain", "outlier row", "outlier column", "zipf rows", "low rank"])
def test_floors_are_about_the_norm_of_the_rounding_error(kind: str, dtype: str, shape: tuple[int, int]) -> None:
    weight = 0.02 * normal(*shape)
    if kind == "outlier row":
        weight[5] *= 100
    elif kind == "outlier column":
        weight[:, 5] *= 100
    elif kind == "zipf rows":
        weight /= torch.arange(1, shape[0] + 1)[:, None]
    elif kind == "low rank":
        weight = 0.02 * normal(shape[0], 8) @ normal(8, shape[1])
    error = float(torch.linalg.matrix_norm((rounded(weight, dtype) - weight).double(), 2))
    floor = floor_of(weight, dtype)
    # A column of outliers is every row's largest element, which a scale per row leaves exact.
    most = 150 if kind == "outlier column" and "float8" in dtype else 2
    assert 0.6 * error <= floor <= most * error


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_below_the_normal_range_the_step_is_fixed(dtype: str) -> None:
    weight = normal(200, 200) * 4 * ROUNDINGS[dtype].step
    error = float(torch.linalg.matrix_norm((rounded(weight, dtype) - weight).double() / ROUNDINGS[dtype].step, 2))
    for scale in (1.0, ROUNDINGS[dtype].step):
        floor = floor_of(weight.double(), dtype, scale=scale) / ROUNDINGS[dtype].step
        assert 0.7 * error <= floor <= 2 * error


def test_a_significand_that_fits_is_not_rounded() -> None:
    """bfloat16 weights as float16: only what is below 2^-14 loses anything."""
    weight = normal(200, 200).bfloat16().float()
    assert float((rounded(weight, "float16") - weight).abs().max()) < 2.0**-24
    assert floor_of(weight, "float16", "bfloat16") < 1e-3 * floor_of(weight, "float16", "float32")


def test_floors_grow_with_the_weights() -> None:
    """Also beyond what float32 can square."""
    weight = normal(20, 30).double()
    for dtype in ("bfloat16", "int8", "float8_e5m2"):
        plain = floor_of(weight, dtype)
        for scale in (1e-30, 1e30, 1e200):
            assert floor_of(weight * scale, dtype, scale=scale) / scale == pytest.approx(plain, rel=1e-3)


def test_sizes() -> None:
    weight = torch.zeros(2, 3, 4)
    weight[0, 1], weight[0, :, 2] = torch.tensor([3.0, 0.0, -5.0, 4.0]), torch.tensor([1.0, -5.0, 1.0])
    frobenius, sizes = measure_sizes(weight, scaled=True)
    assert frobenius[0] == pytest.approx(math.sqrt(9 + 25 + 16 + 2)) and frobenius[1] == 0
    assert sizes.row[0] == pytest.approx(math.sqrt(50)) and sizes.col[0] == pytest.approx(math.sqrt(27))
    assert sizes.peak[0] == 5 and sizes.peaks[0] == pytest.approx(math.sqrt(27))
    assert (sizes.rows, sizes.cols) == (3, 4)
    _, without = measure_sizes(weight, scaled=False)
    assert not without.peak.any() and not without.peaks.any()
    assert is_scaled("bfloat16", "int8") and not is_scaled("bfloat16", "float32", "unheard_of")


@pytest.mark.parametrize("shape", [(1, 1_000_000), (2, 100_003), (100_000, 2), (700, 1500), (1, 1)])
def test_norms_are_exact_where_sums_are_of_equal_elements(shape: tuple[int, int]) -> None:
    """One sum along a million of them was off by 7e-4."""
    frobenius, sizes = measure_sizes(torch.full((1, *shape), 1 / 3), scaled=False)
    assert frobenius[0] == pytest.approx(float(torch.tensor(1 / 3)) * math.sqrt(math.prod(shape)), rel=2e-6)
    assert sizes.col[0] == pytest.approx(float(torch.tensor(1 / 3)) * math.sqrt(shape[0]), rel=1e-3)


@pytest.mark.parametrize("shape", [(50, 50), (50, 400), (400, 50), (1, 9)])
def test_shrinking_is_continuous_and_monotone_and_ends_at_the_value_itself(shape: tuple[int, int]) -> None:
    values = np.geomspace(1e-3, 1e9, 40_001)
    shrunk = shrink(values, 1.0, *shape)
    assert (np.diff(shrunk) >= 0).all() and (shrunk <= values).all() and (shrunk >= 0).all()
    assert not shrunk[values <= 1].any() and (shrunk[values > 1.0001] > 0).all()
    np.testing.assert_allclose(shrunk[values > 1e6], values[values > 1e6], rtol=1e-10)
    # What is left grows as a square root just above the floor: no finite step where the grid is fine.
    fine = shrink(1 + np.geomspace(1e-12, 1e-2, 1000), 1.0, *shape)
    assert fine[0] < 1e-4 and (np.diff(fine) < 0.02).all()


def test_shrinking_scales_and_leaves_what_has_no_noise() -> None:
    values = np.array([10.0, 3.0, 1.1, 0.5, 0.0])
    np.testing.assert_allclose(shrink(values * 1e-30, 1e-30, 9, 5), 1e-30 * shrink(values, 1.0, 9, 5), rtol=1e-12)
    assert shrink(values, 0.0, 9, 5) is values
    assert len(shrink(np.zeros(0), 1.0, 0, 5)) == 0
    assert not shrink(values, 100.0, 9, 5).any()


def test_shrinking_takes_the_noise_off_a_spike() -> None:
    """σ₁ u vᵀ of a rank-1 matrix in noise is nearest to the matrix itself if σ₁ is what u and v have of that."""
    rows, cols, noise = 300, 600, 0.01
    edge = noise * (math.sqrt(rows) + math.sqrt(cols))
    generator = torch.Generator().manual_seed(1)
    sides = (torch.randn(size, dtype=torch.float64, generator=generator) for size in (rows, cols))
    left, right = (side / side.norm() for side in sides)
    true = 1.5 * edge * torch.outer(left, right)
    noisy = true + noise * torch.randn(rows, cols, dtype=torch.float64, generator=generator)
    left_vectors, values, right_vectors = torch.linalg.svd(noisy, full_matrices=False)
    shrunk = shrink(values.numpy(), edge, rows, cols)
    best = float(left_vectors[:, 0] @ true @ right_vectors[0])
    assert shrunk[0] == pytest.approx(best, rel=0.05) and best < 0.9 * float(values[0])
    assert shrunk[1:].sum() < 0.1 * shrunk[0]


def test_floors_of_several_matrices_at_once() -> None:
    weights = torch.stack([normal(20, 30), 5 * normal(20, 30)])
    _, sizes = measure_sizes(weights, scaled=True)
    assert isinstance(sizes, Sizes)
    together = floors(sizes, "int8", np.ones(2))
    assert together.tolist() == pytest.approx([floor_of(weight, "int8") for weight in weights])
