"""What comes in, and its singular values."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

LayerStep = tuple[str, str, str, int]
"""(run, layer, role, step)"""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One whole tensor at one optimizer step, assembled from its shards.

    `shape` is the tensor's own; `data` holds its elements row-major in `wire_dtype` (a name of
    `rankd_client.wire.DTYPES`) as raw bytes, empty for a layer that is already known to be non-finite or all-zero:
    there is nothing left to measure in it.
    """

    run: str
    layer: str
    step: int
    shape: tuple[int, ...]
    wire_dtype: str
    source_dtype: str
    data: npt.NDArray[np.uint8]
    role: str = "weight"
    finite: bool = True
    zero: bool = False

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Columns of the matrix (size(0), -1)."""
        return math.prod(self.shape[1:])

    @property
    def key(self) -> tuple[str, str, str]:
        """What newest-wins and order are kept by: (run, layer, role)."""
        return self.run, self.layer, self.role

    @property
    def noticed(self) -> bool:
        """Non-finite or all-zero: an event that newer snapshots must never displace."""
        return not self.finite or self.zero


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of a rows × cols matrix.

    `singular_values` is float64, descending, of length min(rows, cols), in units of `scale`, the largest magnitude in
    the matrix: σ = scale · singular_values. Dividing by it first keeps weights of 1e-30 or 1e30 within range.
    An all-zero or empty matrix has scale 0; a non-finite one has no singular values and scale NaN.
    """

    rows: int
    cols: int
    singular_values: npt.NDArray[np.float64]
    scale: float
    method: str
    error: float = 0.0
    """Of the effective rank, relative: what the method's rounding may have done to it."""

    @property
    def finite(self) -> bool:
        return math.isfinite(self.scale)
