"""What is asked of a matrix."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch

from rankd.records import Tier

DEFAULT_TOLERANCE = 0.05
"""Half-width of a bar, relative, up to which an estimate of the effective rank stands: the default rule looks for
changes of 6 % and more, and those are sharper than levels."""


@dataclass(frozen=True, slots=True)
class Ask:
    """`key` names the matrix over its snapshots and fixes its probes. `reference`: the exact tier is
    `torch.linalg.svdvals`. `extra`: names of EXTRA_METRICS."""

    tier: Tier = "exact"
    key: str = ""
    wire_dtype: str = "float32"
    source_dtype: str = "float32"
    tolerance: float = DEFAULT_TOLERANCE
    reference: bool = False
    extra: tuple[str, ...] = ()
    row_peaks: torch.Tensor | None = field(default=None, repr=False, compare=False)
    """(rows,): the largest magnitude in all that shares a scale with each row, where that is more than the matrix."""
