"""Singular values against float64 numpy, and what is not a matrix to solve."""

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from spectra import DEFICIENT, FAMILIES, FULL_RANK, made

from rankd.metrics import METRICS, effective_rank
from rankd.records import Spectrum
from rankd.spectrum import exact, measure_spectrum

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")

SHAPES = [(130, 130), (200, 60), (60, 200)]


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


def truth(weight: torch.Tensor) -> npt.NDArray[np.float64]:
    return np.linalg.svd(weight.double().numpy(), compute_uv=False)


def errors(weight: torch.Tensor, spectrum: Spectrum) -> dict[str, float]:
    """Of each metric, relative, against numpy's singular values."""
    expected = Spectrum(*weight.shape, truth(weight / spectrum.scale), spectrum.scale, "numpy")
    pairs = {name: (metric(spectrum), metric(expected)) for name, metric in METRICS.items()}
    return {name: abs(value - true) / (true or 1.0) for name, (value, true) in pairs.items()}


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (12, 30), (30, 12), (16, 16), (300, 200)])
def test_agrees_with_numpy(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    spectrum = measure_spectrum(weight)
    np.testing.assert_allclose(spectrum.singular_values * spectrum.scale, truth(weight), rtol=1e-11)
    assert (spectrum.rows, spectrum.cols, spectrum.method) == (*shape, "gram_eigvalsh_float64")
    assert spectrum.singular_values.dtype == np.float64
    assert np.all(np.diff(spectrum.singular_values) <= 0)
    assert spectrum.scale == float(weight.abs().max())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", FULL_RANK)
def test_every_metric_has_ten_digits(family: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = made(family, *shape).to(dtype).double()
    assert max(errors(weight, measure_spectrum(weight.to(dtype))).values()) <= 1e-10


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", DEFICIENT)
def test_deficient_matrices_have_four_digits(family: str, shape: tuple[int, int]) -> None:
    weight = made(family, *shape)
    assert max(errors(weight, measure_spectrum(weight)).values()) <= 5e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_the_bound_is_above_the_error_of_the_effective_rank(family: str) -> None:
    """Of the Gram matrix, which is the less accurate where a spectrum reaches far down."""
    for seed in range(5):
        weight = made(family, 120, 150, seed)
        peak = weight.abs().max()
        solved = exact._gram_singular_values(weight, peak, anyhow=True)
        assert solved is not None
        spectrum = Spectrum(120, 150, solved[0], float(peak), "gram", solved[1])
        assert errors(weight, spectrum)["effective_rank"] <= spectrum.error + 1e-14


def test_what_lies_below_a_gram_matrix_is_seen_all_the_same() -> None:
    """σ of 1e-9 beside σ₁ = 1, as many as there are of them, move the effective rank: their squares are rounding."""
    weight = torch.diag(torch.cat([torch.ones(4), torch.full((400,), 1e-5)]).double())
    weight[4:] *= 1e-4
    spectrum = measure_spectrum(weight)
    np.testing.assert_allclose(spectrum.singular_values[4:], 1e-9, rtol=1e-6)
    assert spectrum.error < 1e-10
    assert effective_rank(spectrum) == pytest.approx(effective_rank(measure_spectrum(weight, reference=True)), rel=1e-9)


def test_the_reference_is_svdvals(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = matrix(20, 30)
    plain = measure_spectrum(weight)
    monkeypatch.setattr(torch.linalg, "eigvalsh", refuse)
    spectrum = measure_spectrum(weight, reference=True)
    assert spectrum.method == "svdvals_float64"
    np.testing.assert_allclose(spectrum.singular_values, plain.singular_values, rtol=1e-11)


def test_float64_is_measured_in_float64() -> None:
    weight = matrix(20, 10).double()
    weight += 1e-10 * matrix(20, 10, seed=1)
    spectrum = measure_spectrum(weight)
    np.testing.assert_allclose(spectrum.singular_values * spectrum.scale, truth(weight), rtol=1e-13)


def test_more_dimensions_are_flattened_and_the_weight_is_left_alone() -> None:
    weight = torch.nn.Parameter(matrix(6, 24).reshape(6, 2, 3, 4).transpose(1, 2))
    before = weight.detach().clone()
    spectrum = measure_spectrum(weight)
    assert (spectrum.rows, spectrum.cols) == (6, 24)
    flat = measure_spectrum(before.reshape(6, 24))
    np.testing.assert_array_equal(spectrum.singular_values, flat.singular_values)
    assert torch.equal(weight.detach(), before)


def test_one_matrix_after_another_in_the_same_memory() -> None:
    """Large, small, transposed, with steps: each has its own numbers, and those stay when the next one comes."""
    weights = [matrix(150, 90), matrix(8, 5), matrix(60, 150).T, matrix(90, 90)[::2, ::3]]
    spectra = [measure_spectrum(weight) for weight in weights]
    for weight, spectrum in zip(weights, spectra, strict=True):
        np.testing.assert_allclose(spectrum.singular_values * spectrum.scale, truth(weight), rtol=1e-11)


@pytest.mark.parametrize(
    ("factor", "dtype"),
    [(1e30, torch.float32), (1e-30, torch.float32), (1e300, torch.float64), (1e-300, torch.float64)],
)
def test_scale_changes_nothing(factor: float, dtype: torch.dtype) -> None:
    weight = matrix(9, 5).to(dtype)
    plain, scaled = measure_spectrum(weight), measure_spectrum(weight * factor)
    np.testing.assert_allclose(scaled.singular_values, plain.singular_values, rtol=1e-5)
    assert scaled.scale == pytest.approx(plain.scale * factor)


@pytest.mark.parametrize(("tiny", "dtype"), [(2.0**-149, torch.float32), (2.0**-1074, torch.float64)])
def test_denormal_weights_have_their_full_spectrum(tiny: float, dtype: torch.dtype) -> None:
    weight = torch.diag(torch.tensor([4.0, 2.0, 1.0], dtype=dtype)) * tiny
    spectrum = measure_spectrum(weight)
    assert spectrum.scale == 4 * tiny
    np.testing.assert_allclose(spectrum.singular_values, [1.0, 0.5, 0.25], rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int8, torch.bool])
def test_dtypes_without_a_kernel_are_widened(dtype: torch.dtype) -> None:
    spectrum = measure_spectrum(torch.eye(4).to(dtype))
    np.testing.assert_allclose(spectrum.singular_values, np.ones(4))


def refuse(*_: object, **__: object) -> torch.Tensor:
    raise AssertionError("LAPACK was called")


@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_non_finite_weights_are_never_handed_to_lapack(
    value: float, dtype: torch.dtype, reference: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("svdvals", "eigvalsh", "eigh", "svd"):
        monkeypatch.setattr(torch.linalg, name, refuse)
    weight = matrix(5, 4).to(dtype)
    weight[3, 2] = value
    spectrum = measure_spectrum(weight, reference)
    assert not spectrum.finite
    assert math.isnan(spectrum.scale)
    assert len(spectrum.singular_values) == 0


def test_zero_and_empty() -> None:
    zero = measure_spectrum(torch.zeros(3, 5))
    assert (zero.scale, zero.finite, zero.singular_values.tolist()) == (0.0, True, [0.0, 0.0, 0.0])
    for shape in [(0, 4), (4, 0), (0, 10**12), (0, 0)]:
        empty = measure_spectrum(torch.empty(shape))
        assert (empty.rows, empty.cols, empty.scale, len(empty.singular_values)) == (*shape, 0.0, 0)


@pytest.mark.parametrize("weight", [torch.ones(3), torch.tensor(1.0), torch.ones(2, 2, dtype=torch.complex64)])
def test_what_is_no_matrix_is_refused(weight: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=rf"{weight.ndim}-dimensional {weight.dtype}.*expected"):
        measure_spectrum(weight)


def failing(name: str, num_failures: int, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the first calls of a function of torch.linalg fail as LAPACK does now and then."""
    real, calls = getattr(torch.linalg, name), iter(range(1000))

    def solve(*arguments: object, **options: object) -> torch.Tensor:
        values: torch.Tensor = real(*arguments, **options)
        if next(calls) >= num_failures:
            return values
        if failure == "raises":
            raise exact.LinAlgError("did not converge")
        return values * math.nan

    monkeypatch.setattr(torch.linalg, name, solve)


@pytest.mark.parametrize("failure", ["raises", "answers NaN"])
@pytest.mark.parametrize(("of_svdvals", "method"), [(0, "svdvals_float64"), (1, "gram_eigvalsh_float64")])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_without_convergence_the_next_method_is_taken(
    shape: tuple[int, int], of_svdvals: int, method: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = matrix(*shape)
    failing("eigvalsh", 1, failure, monkeypatch)
    failing("svdvals", of_svdvals, failure, monkeypatch)
    spectrum = measure_spectrum(weight)
    assert spectrum.method == method
    np.testing.assert_allclose(spectrum.singular_values * spectrum.scale, truth(weight), rtol=1e-6)


@pytest.mark.parametrize("failure", ["raises", "answers NaN"])
def test_where_nothing_converges_that_is_an_error(failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("eigvalsh", "svdvals"):
        failing(name, 1000, failure, monkeypatch)
    with pytest.raises(exact.LinAlgError):
        measure_spectrum(matrix(12, 7))


@pytest.mark.parametrize("tall", [True, False])
def test_long_thin_matrices_keep_their_digits(tall: bool) -> None:
    """float32 sums along a million equal rows were off by 1e-4."""
    matrix = torch.tensor([[3.0, 2.0], [3.0, -2.0]]).repeat(1 << 19, 1)
    spectrum = measure_spectrum(matrix if tall else matrix.T)
    assert spectrum.singular_values * spectrum.scale == pytest.approx([3 * 1024, 2 * 1024], rel=1e-12)


@pytest.mark.parametrize(
    "weight",
    [
        torch.eye(40)[torch.randperm(40, generator=torch.Generator().manual_seed(0))],
        torch.linalg.qr(matrix(40, 40).double()).Q,
        torch.nn.functional.one_hot(torch.tensor([3, 1]), 5).float() * 1e-30,
    ],
    ids=["permutation", "orthogonal", "two elements"],
)
def test_equal_singular_values(weight: torch.Tensor) -> None:
    spectrum = measure_spectrum(weight)
    assert effective_rank(spectrum) == pytest.approx(min(weight.shape), rel=1e-12)


@needs_cuda
@pytest.mark.parametrize("family", FAMILIES)
def test_a_gpu_is_as_accurate(family: str) -> None:
    weight = made(family, 300, 200)
    spectrum = measure_spectrum(weight.to("cuda", torch.float32))
    expected = measure_spectrum(weight.float(), reference=True)
    assert effective_rank(spectrum) == pytest.approx(effective_rank(expected), rel=5e-5)
    assert spectrum.method in ("gram_eigvalsh_float64", "svdvals_gesvd")
