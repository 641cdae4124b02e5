"""float16 or bfloat16: in which of them a layer travels that is to go as float16. Both take as many bytes.

On a GPU that is decided there, because asking would wait for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OVERFLOWS = 65520.0
"""Magnitudes from here on round to infinity in float16."""

COARSE = 2.0**-17
"""Below this magnitude float16's steps, which are 2^-24 all the way to 0, are wider than bfloat16's."""


def is_unfit(source: torch.Tensor) -> torch.Tensor:
    """Whether `source` would overflow in float16, or is small: one boolean, on its device.

    As on the CPU, what holds NaN stays float16.
    """
    import torch

    low, high = source.aminmax()
    return (torch.maximum(high, -low) >= OVERFLOWS) | is_small(source)


def is_small(source: torch.Tensor) -> torch.Tensor:
    """Whether the root mean square of `source` is below COARSE: one boolean, on its device.

    From there on those steps, over all elements, are an error of at most 2^-8 of the Frobenius norm, as bfloat16's are;
    what they add to singular values the daemon takes off as the noise of fixed steps, which below is no longer such:
    elements that vanish have none. The largest magnitude says less: where few are large, all others may vanish.
    """
    import torch

    small: torch.Tensor = torch.linalg.vector_norm(source) < COARSE * math.sqrt(source.numel())
    return small


def cast_half(piece: torch.Tensor, unfit: torch.Tensor, target: torch.Tensor) -> None:
    """Write `piece` into `target` (int16, of its shape) as float16, or where it is `unfit` as bfloat16."""
    import torch

    halves = (piece.to(torch.bfloat16).view(torch.int16), piece.to(torch.float16).view(torch.int16))
    torch.where(unfit, *halves, out=target)
