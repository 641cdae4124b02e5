"""float16 on a GPU: which of two dtypes a layer travels in is decided there, because asking would wait for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

OVERFLOWS = 65520.0
"""Magnitudes from here on round to infinity in float16."""

VANISHES = 2.0**-25
"""Magnitudes up to here round to zero in it."""


def is_unfit(source: torch.Tensor) -> torch.Tensor:
    """Whether `source` would overflow in float16, or vanish altogether: one boolean, on its device.

    As on the CPU, what holds NaN stays float16.
    """
    import torch

    low, high = source.aminmax()
    peak = torch.maximum(high, -low)
    return (peak >= OVERFLOWS) | (peak <= VANISHES)


def cast_half(piece: torch.Tensor, unfit: torch.Tensor, target: torch.Tensor) -> None:
    """Write `piece` into `target` (int16, of its shape) as float16, or where it is `unfit` as bfloat16."""
    import torch

    halves = (piece.to(torch.bfloat16).view(torch.int16), piece.to(torch.float16).view(torch.int16))
    torch.where(unfit, *halves, out=target)
