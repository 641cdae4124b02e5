"""The exact tier: every singular value, by the fastest way that is accurate for the device and the shape.

Measured (benchmarks/spectra_cpu.py, spectra_gpu.py): the eigenvalues of the float64 Gram matrix cost less than half of
float32 `svdvals` on a CPU and an eighth of it on an H100, and are the more accurate of the two. What they cannot see is
what lies below 4e-8 of σ₁: √(8ε), for the spectrum was squared. A bound says what that may come to; where it is too
much, the matrix is solved by `svdvals` in float64, on a GPU by its driver gesvd. GPUs with slow float64 use that in
float32."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt
import torch

from rankd.records import Spectrum

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]

GRAM_TOLERANCE = 5e-5
"""Relative error of the effective rank beyond which the Gram matrix is not believed."""

FAST_FLOAT64 = ((6, 0), (7, 0), (8, 0), (9, 0), (10, 0))
"""Compute capabilities with float64 at half of float32's rate; all others have a 32nd or a 64th."""

_BACKWARD_ERROR = 8 * float(np.finfo(np.float64).eps)
"""Of an eigenvalue, relative to the largest: what product and solver did to those of random matrices, four times
over."""

_GRAM_LEVELS = 3
_MIN_BLOCK = 96
"""Half of a Gram matrix is the other's mirror image: three levels of blocks save seven sixteenths of it; smaller blocks
would lose more to smaller products."""

_SAFE = (1e-60, 1e60)
"""Of a largest magnitude: its square is far from the ends of float64, and dividing by it can wait."""

Values = npt.NDArray[np.float64]
Solved = tuple[Values, float]
"""Singular values, descending, and how wrong the effective rank of them can be, relatively."""
Solve = Callable[[torch.Tensor, torch.Tensor], Solved | None]


def measure_spectrum(weight: torch.Tensor, reference: bool = False) -> Spectrum:
    """The singular values of `weight`, a real tensor of two or more dimensions taken as a (size(0), -1) matrix.

    The matrix is divided by its largest magnitude first, so that no scale of weights over- or underflows. Computed on
    the tensor's own device. `reference`: by `torch.linalg.svdvals` in float64 on the CPU, whatever it costs.
    Non-finite, all-zero and empty matrices are answered without being copied or handed to LAPACK (which raises on NaN
    and silently returns NaN on Inf). Raises ValueError for fewer than two dimensions or complex numbers, and
    `torch.linalg.LinAlgError` if every method failed on a finite matrix.
    """
    if weight.ndim < 2 or weight.is_complex():
        raise ValueError(f"weight is a {weight.ndim}-dimensional {weight.dtype} tensor; expected real and two or more")
    rows, cols = weight.shape[0], math.prod(weight.shape[1:])
    if rows == 0 or cols == 0:
        return Spectrum(rows, cols, np.zeros(0), 0.0, "empty")
    matrix = weight.detach().reshape(rows, cols)
    if matrix.dtype not in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
        matrix = matrix.float()  # float8 and integers have no kernel for what follows
    # aminmax allocates nothing and passes NaN on. The peak stays a tensor of the same device: dividing by a Python
    # number may multiply by its reciprocal, which for a denormal peak is Inf.
    low, high = torch.aminmax(matrix)
    peak = torch.maximum(low.double().neg(), high.double())
    scale = float(peak)
    if not math.isfinite(scale):
        return Spectrum(rows, cols, np.zeros(0), math.nan, "nonfinite")
    if scale == 0:
        return Spectrum(rows, cols, np.zeros(min(rows, cols)), 0.0, "zero")
    (values, doubtful), method = _solve(matrix, peak, reference)
    return Spectrum(rows, cols, values, scale, method, doubtful)


def _solve(matrix: torch.Tensor, peak: torch.Tensor, reference: bool) -> tuple[Solved, str]:
    """What the first method that succeeded gave, and its name."""
    error: RuntimeError | None = None
    for method, solve in _methods(matrix, reference):
        try:
            solved = solve(matrix, peak)
        except LinAlgError as failed:  # LAPACK did not converge: rare, and not the matrix's fault
            error = failed
            continue
        if solved is not None and np.isfinite(solved[0]).all():
            return solved, method
    raise error or LinAlgError(f"no method gave finite singular values of a {tuple(matrix.shape)} matrix")


def _methods(matrix: torch.Tensor, reference: bool) -> Iterator[tuple[str, Solve]]:
    if not reference:
        if not matrix.is_cuda or torch.cuda.get_device_capability(matrix.device) in FAST_FLOAT64:
            yield "gram_eigvalsh_float64", _gram_singular_values
        if matrix.is_cuda:
            # gesvdj, the default on CUDA, is slower than gesvd and the less accurate of the two.
            yield "svdvals_gesvd", _gesvd
    yield "svdvals_float64", _svdvals
    yield "gram_eigvalsh_float64", lambda matrix, peak: _gram_singular_values(matrix.cpu(), peak.cpu(), anyhow=True)


def _svdvals(matrix: torch.Tensor, peak: torch.Tensor) -> Solved:
    values = _array(torch.linalg.svdvals(matrix.to("cpu", torch.float64) / peak.cpu()))
    return values, direct_error(values, float(np.finfo(np.float64).eps))


def _gesvd(matrix: torch.Tensor, peak: torch.Tensor) -> Solved:
    fast = torch.cuda.get_device_capability(matrix.device) in FAST_FLOAT64
    work_dtype = torch.float64 if fast or matrix.dtype == torch.float64 else torch.float32
    values = _array(torch.linalg.svdvals((matrix.to(torch.float64) / peak).to(work_dtype), driver="gesvd"))
    return values, direct_error(values, torch.finfo(work_dtype).eps)


def direct_error(values: Values, epsilon: float) -> float:
    """How wrong the effective rank is, relatively, of singular values that are each off by up to ε σ₁ as a rule."""
    return _effective_rank_error(values, np.full_like(values, epsilon * values[0]))


def _gram_singular_values(matrix: torch.Tensor, peak: torch.Tensor, anyhow: bool = False) -> Solved | None:
    """The roots of the eigenvalues of the smaller Gram matrix; None where they are not to be believed."""
    short = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    scale = float(peak)
    if matrix.dtype == torch.float64 or not _SAFE[0] < scale < _SAFE[1]:
        short, scale = short.to(torch.float64) / peak, 1.0
    eigenvalues = _array(torch.linalg.eigvalsh(_gram(short)))[::-1] / scale**2
    if not np.isfinite(eigenvalues).all():
        return None
    values, doubtful = roots(eigenvalues)
    return (values, doubtful) if anyhow or doubtful <= GRAM_TOLERANCE else None


def roots(eigenvalues: Values) -> tuple[Values, float]:
    """Singular values of descending eigenvalues, and how wrong the effective rank of them can be, relatively.

    An eigenvalue is off by up to δ = 8 ε λ₁, its root by δ/2σ; those below δ are rounding, and count as zero.
    """
    delta = _BACKWARD_ERROR * max(float(eigenvalues[0]), 0.0)
    certain = eigenvalues > delta
    values = np.sqrt(np.where(certain, eigenvalues, 0.0))
    errors = np.where(certain, delta / (2 * np.maximum(values, math.sqrt(delta))), math.sqrt(delta))
    return values, _effective_rank_error(values, errors)


def _effective_rank_error(values: Values, errors: Values) -> float:
    """To first order: the entropy of σ/Σσ changes by |log p + H| dσ/Σσ; σ of 0 have the p of their error."""
    total = float(values.sum())
    if total == 0:
        return math.inf
    share = np.maximum(np.maximum(values, errors), np.finfo(np.float64).tiny) / total
    entropy = -float(np.sum(share * np.log(share)))
    return float(np.sum(errors * np.abs(np.log(share) + entropy)) / total)


def _widened(matrix: torch.Tensor) -> torch.Tensor:
    """In float64, on a CPU in memory of this thread's that the next one takes over: to touch new pages costs as much as
    to fill them."""
    if matrix.is_cuda or matrix.dtype == torch.float64 or matrix.numel() > _KEPT_ELEMENTS:
        return matrix.to(torch.float64)
    buffer: torch.Tensor | None = getattr(_kept, "buffer", None)
    if buffer is None or buffer.numel() < matrix.numel():
        with torch.inference_mode(False):  # else it could never be written to outside of that mode again
            buffer = _kept.buffer = torch.empty(matrix.numel(), dtype=torch.float64)
    # In the order in which the matrix lies in memory.
    whole = matrix.T if matrix.stride(0) < matrix.stride(1) else matrix
    wide = buffer[: matrix.numel()].view(whole.shape).copy_(whole)
    return wide.T if whole is not matrix else wide


_KEPT_ELEMENTS = 1 << 22
"""32 MiB for each measuring thread: a 2048 × 2048."""
_kept = threading.local()


def _gram(short: torch.Tensor) -> torch.Tensor:
    """The lower triangle of short · shortᵀ in float64, which is all that eigvalsh reads; what is above it is undefined.
    A long side is taken in turns, for its copy in float64 would be four times as large as a bfloat16 embedding."""
    gram: torch.Tensor | None = None
    for start in range(0, short.shape[1], _LONG):
        part = _product(_widened(short[:, start : start + _LONG]))
        gram = part if gram is None else gram.add_(part)
    assert gram is not None  # nothing empty comes here
    return gram


_LONG = 1 << 14
"""Elements of it: 0.5 GB of float64 beside a short side of 4,096."""


def _product(short: torch.Tensor) -> torch.Tensor:
    if short.is_cuda:
        return short @ short.T  # a few ms of a hundred
    gram = short.new_empty(short.shape[0], short.shape[0])
    _fill(gram, short, _GRAM_LEVELS)
    return gram


def _fill(gram: torch.Tensor, rows: torch.Tensor, levels: int) -> None:
    half = rows.shape[0] // 2
    if levels == 0 or half < _MIN_BLOCK:
        gram.copy_(rows @ rows.T)
        return
    upper, lower = rows[:half], rows[half:]
    _fill(gram[:half, :half], upper, levels - 1)
    _fill(gram[half:, half:], lower, levels - 1)
    gram[half:, :half] = lower @ upper.T


def _array(values: torch.Tensor) -> Values:
    return values.to("cpu", torch.float64).numpy()
