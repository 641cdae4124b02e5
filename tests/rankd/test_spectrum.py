"""Singular values against float64 numpy, and what is not a matrix to solve."""

import math

import numpy as np
import pytest
import torch

from rankd.spectrum import measure_spectrum


def matrix(rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (12, 30), (30, 12), (16, 16)])
def test_agrees_with_numpy(shape: tuple[int, int]) -> None:
    weight = matrix(*shape)
    spectrum = measure_spectrum(weight)
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum.singular_values * spectrum.scale, expected, rtol=1e-5)
    assert (spectrum.rows, spectrum.cols, spectrum.method) == (*shape, "svdvals")
    assert spectrum.singular_values.dtype == np.float64
    assert np.all(np.diff(spectrum.singular_values) <= 0)
    assert spectrum.scale == float(weight.abs().max())


def test_float64_is_measured_in_float64() -> None:
    weight = matrix(20, 10).double()
    spectrum = measure_spectrum(weight)
    expected = np.linalg.svd(weight.numpy(), compute_uv=False)
    np.testing.assert_allclose(spectrum.singular_values * spectrum.scale, expected, rtol=1e-13)


def test_more_dimensions_are_flattened_and_the_weight_is_left_alone() -> None:
    weight = torch.nn.Parameter(matrix(6, 24).reshape(6, 2, 3, 4).transpose(1, 2))
    before = weight.detach().clone()
    spectrum = measure_spectrum(weight)
    assert (spectrum.rows, spectrum.cols) == (6, 24)
    flat = measure_spectrum(before.reshape(6, 24))
    np.testing.assert_array_equal(spectrum.singular_values, flat.singular_values)
    assert torch.equal(weight.detach(), before)


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


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_non_finite_weights_are_never_handed_to_lapack(
    value: float, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> torch.Tensor:
        raise AssertionError("LAPACK was called")

    monkeypatch.setattr(torch.linalg, "svdvals", refuse)
    weight = matrix(5, 4).to(dtype)
    weight[3, 2] = value
    spectrum = measure_spectrum(weight)
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


def failing_svdvals(num_failures: int, failure: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the first calls of svdvals fail as LAPACK does now and then."""
    real, calls = torch.linalg.svdvals, iter(range(1000))

    def svdvals(*arguments: object, **options: object) -> torch.Tensor:
        values = real(*arguments, **options)
        if next(calls) >= num_failures:
            return values
        if failure == "raises":
            raise torch.linalg.LinAlgError("did not converge")
        return values * math.nan

    monkeypatch.setattr(torch.linalg, "svdvals", svdvals)


@pytest.mark.parametrize("failure", ["raises", "answers NaN"])
@pytest.mark.parametrize(("num_failures", "method"), [(1, "svdvals_float64"), (2, "gram_eigvalsh_float64")])
@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
def test_without_convergence_the_next_method_is_taken(
    shape: tuple[int, int], num_failures: int, method: str, failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = matrix(*shape)
    expected = np.linalg.svd(weight.double().numpy(), compute_uv=False)
    failing_svdvals(num_failures, failure, monkeypatch)
    spectrum = measure_spectrum(weight)
    assert spectrum.method == method
    np.testing.assert_allclose(spectrum.singular_values * spectrum.scale, expected, rtol=1e-6)


@pytest.mark.parametrize("tall", [True, False])
def test_long_thin_matrices_keep_their_digits(tall: bool) -> None:
    """float32 sums along a million equal rows were off by 1e-4."""
    matrix = torch.tensor([[3.0, 2.0], [3.0, -2.0]]).repeat(1 << 19, 1)
    spectrum = measure_spectrum(matrix if tall else matrix.T)
    assert spectrum.method == "gram_eigvalsh_float64"
    expected = pytest.approx([3 * 1024, 2 * 1024], rel=1e-7)  # what dividing by 3 in float32 leaves
    assert spectrum.singular_values * spectrum.scale == expected
