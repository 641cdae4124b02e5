"""What rounding to a dtype adds to a matrix, and the singular values without it.

A dtype of p significand bits rounds x to a multiple of 2^(e-p), e its exponent: an error of standard deviation
2^(e-p)/√12, on average over the significand 0.2123 · 2^-p · |x|; below its normal range, and with a scale per row, the
step is fixed. Errors of different elements are nearly independent, so that they form a dense matrix whose largest
singular value is at most about (largest row norm + largest column norm) of the standard deviations (Bandeira & van
Handel 2016), which for equal elements is the Marchenko–Pastur edge s(√m+√n). By row and column norms it holds for
outlier rows and Zipf-like scales too, where s(√m+√n) would be several times too low."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rankd_client.wire import LARGEST

Values = npt.NDArray[np.float64]

ROUNDING = 0.2123
"""√(E[1/significand²]/12) of significands that are spread evenly on a logarithmic scale in [1, 2)."""


@dataclass(frozen=True, slots=True)
class Rounding:
    """`bits` of the significand behind the point, None where steps are all alike; `step`: that below the normal range.
    With `largest`, values are scaled so that each row's largest magnitude comes to it, and `step` is in those units."""

    bits: int | None
    step: float
    largest: float | None = None


ROUNDINGS = {
    "float64": Rounding(52, 2.0**-1074),
    "float32": Rounding(23, 2.0**-149),
    "float16": Rounding(10, 2.0**-24),
    "bfloat16": Rounding(7, 2.0**-133),
    "float8_e4m3fn": Rounding(3, 2.0**-9, largest=LARGEST["float8_e4m3fn"]),
    "float8_e5m2": Rounding(2, 2.0**-16, largest=LARGEST["float8_e5m2"]),
    "int8": Rounding(None, 1.0, largest=LARGEST["int8"]),
}
"""By the wire's names, from the finest to the coarsest but for the last two."""


def adds_noise(wire_dtype: str, source_dtype: str) -> bool:
    """Whether a cast from `source_dtype` to `wire_dtype` loses anything. An unknown source is taken for the wire's."""
    wire, source = ROUNDINGS.get(wire_dtype), ROUNDINGS.get(source_dtype)
    if wire is None or source is None or wire == source:
        return False
    return wire.bits is None or wire.bits < _bits(source) or wire.step > source.step


def _bits(rounding: Rounding) -> int:
    """Behind the point: whole numbers up to 127 have six."""
    return 6 if rounding.bits is None else rounding.bits


@dataclass(frozen=True, slots=True)
class Sizes:
    """(B,) float64 each, of a batch (B, rows, cols): the largest row norm and column norm; the largest magnitude, and
    the norm of the rows' largest ones."""

    row: Values
    col: Values
    peak: Values
    peaks: Values
    rows: int
    cols: int


def is_scaled(*dtypes: str) -> bool:
    """Whether one of them comes with a scale per row."""
    return any(dtype in ROUNDINGS and ROUNDINGS[dtype].largest is not None for dtype in dtypes)


def measure_sizes(matrices: torch.Tensor, scaled: bool) -> tuple[Values, Sizes]:
    """(B,) Frobenius norms, and the Sizes; the peaks are 0 unless they are asked for, for a dtype that `is_scaled`."""
    _, rows, cols = matrices.shape
    sum_dtype = torch.float64 if matrices.dtype == torch.float64 else torch.float32
    by_row = _row_norms(matrices, sum_dtype)
    by_col = _largest_column(matrices, sum_dtype)
    peaks = torch.linalg.vector_norm(matrices, math.inf, dim=2).double() if scaled else torch.zeros_like(by_row)
    columns = [torch.linalg.vector_norm(by_row, dim=1), by_row.amax(dim=1), by_col]
    stats = torch.stack([*columns, peaks.amax(dim=1), torch.linalg.vector_norm(peaks, dim=1)]).cpu().numpy()
    # Arrays of their own: who knows more of the peaks may set them.
    return stats[0], Sizes(stats[1], stats[2], stats[3], stats[4], rows, cols)


def _row_norms(matrices: torch.Tensor, sum_dtype: torch.dtype) -> torch.Tensor:
    """(B, rows) float64. On a CPU in pieces: sums along a million equal elements were off by 7e-4."""
    whole = 0 if matrices.is_cuda else matrices.shape[2] - matrices.shape[2] % _PIECE
    pieces = [matrices[:, :, whole:].unsqueeze(2)] if whole < matrices.shape[2] else []
    if whole:
        pieces.append(matrices[:, :, :whole].unflatten(2, (-1, _PIECE)))  # type: ignore[no-untyped-call]
    norms = torch.cat([torch.linalg.vector_norm(piece, dim=3, dtype=sum_dtype) for piece in pieces], dim=2)
    by_row: torch.Tensor = torch.linalg.vector_norm(norms.double(), dim=2)
    return by_row


_PIECE = 1024


def _largest_column(matrices: torch.Tensor, sum_dtype: torch.dtype) -> torch.Tensor:
    """(B,) float64. On a CPU a product with ones: norms along columns were 8 to 18 times slower."""
    if matrices.is_cuda:
        norms: torch.Tensor = torch.linalg.vector_norm(matrices, dim=1, dtype=sum_dtype)
        return norms.amax(dim=1).double()
    sums = matrices.new_zeros(matrices.shape[0], 1, matrices.shape[2])
    for start in range(0, matrices.shape[1], _ROWS_AT_ONCE):
        some = matrices[:, start : start + _ROWS_AT_ONCE]
        sums.baddbmm_(some.new_ones(some.shape[0], 1, some.shape[1]), some.square())
    largest: torch.Tensor = sums.amax(dim=(1, 2)).double().sqrt()
    return largest


_ROWS_AT_ONCE = 128
"""Squares of so many rows stay in the cache; those of a whole matrix cost more to make room for than to compute."""


def floors(sizes: Sizes, dtype: str, scales: Values, of: str | None = None) -> Values:
    """(B,): the largest singular value that rounding to `dtype` is likely to have made of nothing, in the matrices'
    unit, which is `scales` (B,) of the weights' own; 0 for a dtype that is not known. `of`: what the elements were
    before, None: real numbers."""
    rounding = ROUNDINGS.get(dtype)
    if rounding is None or (of is not None and not adds_noise(dtype, of)):
        return np.zeros_like(sizes.row)
    share = 0.0 if rounding.bits is None else ROUNDING * 2.0**-rounding.bits
    if of is not None and rounding.largest is None and rounding.bits is not None:
        # A significand that was no longer is not rounded, only what lies below the normal range.
        share = share if rounding.bits < _bits(ROUNDINGS[of]) else 0.0
    fixed = rounding.step / math.sqrt(12.0)
    if rounding.largest is None:
        row, col = fixed * math.sqrt(sizes.cols) / scales, fixed * math.sqrt(sizes.rows) / scales
    else:
        fixed /= rounding.largest
        row, col = fixed * sizes.peak * math.sqrt(sizes.cols), fixed * sizes.peaks
    edges: Values = np.hypot(share * sizes.row, row) + np.hypot(share * sizes.col, col)
    return edges


def shrink(values: Values, floor: float, rows: int, cols: int) -> Values:
    """Singular values without noise whose largest is `floor`: 0 up to there, from there on growing smoothly towards
    themselves (Gavish & Donoho 2017, "Optimal shrinkage of singular values", Frobenius loss). A hard cut would make a
    series jump where a value crosses the floor."""
    if floor <= 0 or len(values) == 0:
        return values
    beta = min(rows, cols) / max(rows, cols)
    y = np.maximum(values / floor, 1e-300) * (1 + math.sqrt(beta))
    squared = np.maximum((y**2 - beta - 1) ** 2 - 4 * beta, 0.0)
    shrunk = np.where(values > floor, np.sqrt(squared) / y, 0.0)
    return np.minimum(values, shrunk * floor / (1 + math.sqrt(beta)))
