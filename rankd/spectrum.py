"""A tensor → its singular values."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
import torch

from rankd.records import Spectrum

LONG_ASPECT = 64
"""Sides this unequal go through the float64 Gram matrix first: float32 sums along a million rows lost four digits, and
the Gram matrix of the short side costs less."""

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def measure_spectrum(weight: torch.Tensor) -> Spectrum:
    """The singular values of `weight`, a real tensor of two or more dimensions taken as a (size(0), -1) matrix.

    The matrix is divided by its largest magnitude first, so that no scale of weights over- or underflows. Computed in
    float64 for a float64 tensor and in float32 for every other dtype (but see LONG_ASPECT), on the tensor's own device.
    Non-finite, all-zero and empty matrices are answered without being copied or handed to LAPACK (which raises on NaN
    and silently returns NaN on Inf). Raises ValueError for fewer than two dimensions or complex numbers, and
    `torch.linalg.LinAlgError` if every method failed on a finite matrix.
    """
    if weight.ndim < 2 or weight.is_complex():
        raise ValueError(f"weight is a {weight.ndim}-dimensional {weight.dtype} tensor; expected real and two or more")
    rows, cols = weight.shape[0], math.prod(weight.shape[1:])
    if rows == 0 or cols == 0:
        return Spectrum(rows, cols, np.zeros(0), 0.0, "empty")
    work_dtype = torch.float64 if weight.dtype == torch.float64 else torch.float32
    matrix = weight.detach().reshape(rows, cols).to(work_dtype)
    # aminmax allocates nothing and passes NaN on. The peak stays a tensor of the same device: dividing by a Python
    # number may multiply by its reciprocal, which for a denormal peak is Inf.
    low, high = torch.aminmax(matrix)
    peak = torch.maximum(low.neg(), high)
    scale = float(peak)
    if not math.isfinite(scale):
        return Spectrum(rows, cols, np.zeros(0), math.nan, "nonfinite")
    if scale == 0:
        return Spectrum(rows, cols, np.zeros(min(rows, cols)), 0.0, "zero")
    singular_values, method = _solve(matrix / peak)
    return Spectrum(rows, cols, singular_values, scale, method)


def _solve(matrix: torch.Tensor) -> tuple[np.ndarray[tuple[int], np.dtype[np.float64]], str]:
    """Singular values, descending, and the name of the first method that succeeded."""
    error: RuntimeError | None = None
    for method, solve in _methods(matrix):
        try:
            values = solve(matrix).to("cpu", torch.float64).numpy()
        except LinAlgError as failed:  # LAPACK did not converge: rare, and not the matrix's fault
            error = failed
            continue
        if np.isfinite(values).all():
            return values, method
    raise error or LinAlgError(f"no method gave finite singular values of a {tuple(matrix.shape)} matrix")


def _methods(matrix: torch.Tensor) -> Iterator[tuple[str, Callable[[torch.Tensor], torch.Tensor]]]:
    if matrix.is_cuda:
        # gesvdj, the default on CUDA, was 8 times slower than gesvda and the less accurate of the two.
        yield "svdvals_gesvda", lambda m: torch.linalg.svdvals(m, driver="gesvda")
    else:
        if max(matrix.shape) >= LONG_ASPECT * min(matrix.shape) and matrix.dtype != torch.float64:
            yield "gram_eigvalsh_float64", _gram_singular_values
        yield "svdvals", torch.linalg.svdvals
    yield "svdvals_float64", lambda m: torch.linalg.svdvals(m.to("cpu", torch.float64))
    yield "gram_eigvalsh_float64", _gram_singular_values


def _gram_singular_values(matrix: torch.Tensor) -> torch.Tensor:
    """The roots of the eigenvalues of the smaller Gram matrix. Values below about 1e-8 of the largest are noise."""
    double = matrix.to("cpu", torch.float64)
    gram = double @ double.T if double.shape[0] <= double.shape[1] else double.T @ double
    eigenvalues: torch.Tensor = torch.linalg.eigvalsh(gram)
    return eigenvalues.clamp(min=0).sqrt().flip(0)
