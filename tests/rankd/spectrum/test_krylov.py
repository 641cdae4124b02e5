"""Recurrences against a plain Lanczos in float64."""

import pytest
import torch
from spectra import made

from rankd.spectrum.krylov import Operator, Recurrence, draw, unit


def plain_lanczos(gram: torch.Tensor, start: torch.Tensor, steps: int) -> torch.Tensor:
    """The tridiagonal matrix (steps, steps) of a symmetric `gram`, reorthogonalised twice."""
    basis = [start / start.norm()]
    for _ in range(steps - 1):
        vector = gram @ basis[-1]
        for _ in range(2):
            for former in basis:
                vector = vector - (former @ vector) * former
        basis.append(vector / vector.norm())
    rows = torch.stack(basis)
    return rows @ gram @ rows.T


@pytest.mark.parametrize("shape", [(6, 9), (9, 6), (7, 7)])
def test_coefficients_are_those_of_lanczos(shape: tuple[int, int]) -> None:
    matrices = torch.stack([made("gaussian", *shape, seed) for seed in range(3)])
    operator = Operator(matrices)
    size = min(shape)
    starts = unit(draw(["a", "b", "c"], 4, size, operator))
    recurrence = Recurrence(operator, starts)
    recurrence.extend(3)
    recurrence.extend(5)  # goes on where it was
    alphas, betas = recurrence.coefficients()
    assert alphas.shape == betas.shape == (3, 4, 5)
    for place, matrix in enumerate(matrices):
        short = matrix if shape[0] <= shape[1] else matrix.T
        for probe in range(4):
            expected = plain_lanczos(short @ short.T, starts[place, probe], 5)
            bidiagonal = torch.diag(alphas[place, probe]) + torch.diag(betas[place, probe, :-1], 1)
            torch.testing.assert_close(bidiagonal.T @ bidiagonal, expected, rtol=1e-9, atol=1e-9)


def test_the_vectors_of_the_steps_are_kept_where_they_are_wanted() -> None:
    operator = Operator(made("gaussian", 6, 9)[None])
    starts = unit(draw(["a"], 2, 6, operator))
    recurrence = Recurrence(operator, starts, keep=True)
    recurrence.extend(4)
    rights = torch.stack(recurrence.rights, dim=2)  # (1, 2, 5, 6)
    torch.testing.assert_close(rights @ rights.mT, torch.eye(5).double().expand(1, 2, 5, 5), rtol=0, atol=1e-9)
    assert torch.equal(recurrence.rights[0], starts)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exhausted_start_gives_zeros_and_no_nan(dtype: torch.dtype) -> None:
    """Starts of 0, an eigenvector, and ones without a part in the range of a matrix of two dimensions."""
    matrix = torch.diag(torch.tensor([3.0, 2.0, 0.0, 0.0], dtype=dtype))[None]
    starts = torch.tensor([[[0, 0, 0, 0], [1, 0, 0, 0], [0, 0, 1, 0], [0.6, 0.8, 0, 0]]], dtype=dtype)
    recurrence = Recurrence(Operator(matrix), starts)
    recurrence.extend(6)
    alphas, betas = recurrence.coefficients()
    assert alphas.isfinite().all() and betas.isfinite().all()
    assert not alphas[0, [0, 2]].any() and not betas[0, [0, 2]].any()
    assert alphas[0, 1].tolist() == [3, 0, 0, 0, 0, 0] and not betas[0, 1].any()
    bidiagonal = torch.diag(alphas[0, 3, :2]) + torch.diag(betas[0, 3, :1], 1)
    torch.testing.assert_close(torch.linalg.svdvals(bidiagonal), torch.tensor([3.0, 2.0]).double(), rtol=1e-6, atol=0)


def test_probes_are_those_of_the_key_whoever_else_is_there() -> None:
    operator = Operator(torch.ones(2, 40, 50))
    first, second = draw(["one", "two"], 5, 40, operator)
    assert torch.equal(draw(["two"], 5, 40, operator)[0], second)
    assert not torch.equal(first, second)
    assert torch.equal(*draw(["two", "two"], 5, 40, operator))


def test_products_take_vectors_of_the_short_side_to_the_long_one_and_back() -> None:
    wide = made("gaussian", 5, 8)[None]
    vectors = torch.randn(1, 3, 5, dtype=torch.float64)
    for matrices in (wide, wide.mT):
        operator = Operator(matrices)
        assert operator.shape == (1, 5, 8)
        torch.testing.assert_close(operator.adjoint(vectors), vectors @ wide)
        torch.testing.assert_close(operator.forward(operator.adjoint(vectors)), vectors @ wide @ wide.mT)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_products_on_a_gpu_have_the_digits_they_claim(dtype: torch.dtype) -> None:
    matrices = made("gaussian", 200, 300)[None].to("cuda", dtype)
    operator = Operator(matrices)
    vectors = draw(["a"], 3, 200, operator)
    expected = vectors.double() @ matrices.double()
    off = (operator.adjoint(vectors).double() - expected).norm() / expected.norm()
    assert off <= 4 * operator.epsilon
