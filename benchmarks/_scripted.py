"""A model whose layers' spectra follow a script, so that real alerts fire, resolve and rebase again and again."""

from __future__ import annotations

import torch

SIZES = (16, 24, 32, 48, 64)
FIRST_STEP, STEP_GROWTH = 1000.0, 1.005
"""Steps grow by a share, so the detectors, which look back in log-time, look back 10 and 28 readings at any step."""

REWIND_EVERY, REWIND_BY = 150, 40
"""Pushes between two returns to a checkpoint, and how far each goes back."""

PERIOD = 100


def step_of(index: int) -> int:
    """The step of push number `index`, from 0."""
    position = index - REWIND_BY * (index // REWIND_EVERY)
    return round(FIRST_STEP * STEP_GROWTH**position)


class ScriptedModel:
    """`num_layers` square matrices of 16 to 64. Each layer has, shifted against the others: a short dip of its
    effective rank (fires and resolves), a lasting fall (fires and rebases), a stretch of doubled norm; and now and then
    every third layer is NaN, or another third all zero, for one push."""

    def __init__(self, num_layers: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._bases = []
        for number in range(num_layers):
            size = SIZES[number % len(SIZES)]
            left, right = (torch.linalg.qr(torch.randn(size, size, generator=generator))[0] for _ in range(2))
            self._bases.append((left, right))

    def weights(self, index: int) -> dict[str, torch.Tensor]:
        """The weights of push number `index`: name → float32 matrix."""
        return {f"layer{number:02}": self._layer(number, index) for number in range(len(self._bases))}

    def _layer(self, number: int, index: int) -> torch.Tensor:
        left, right = self._bases[number]
        size = len(left)
        if number % 3 == 0 and index % 83 == 7 * number % 83:
            return torch.full((size, size), float("nan"))
        if number % 3 == 1 and index % 89 == 5 * number % 89:
            return torch.zeros(size, size)
        phase = (index + 17 * number) % PERIOD
        collapsed = 5 <= phase < 12 or 45 <= phase < 75
        sigma = torch.ones(size)
        sigma[size // 2 :] = 0.01 if collapsed else 1.0
        norm = 2.0 if number % 2 and phase >= 75 else 1.0
        return norm * (left * sigma) @ right
