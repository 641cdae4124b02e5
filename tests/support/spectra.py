"""Matrices of known spectra: of each family a float64 one of a shape and a seed, its values between 1e-7 and 100."""

from __future__ import annotations

import torch


def composed(values: torch.Tensor, rows: int, cols: int, generator: torch.Generator) -> torch.Tensor:
    """U diag(values) Vᵀ with random orthonormal columns U and V."""
    sides = (
        torch.linalg.qr(torch.randn(size, len(values), dtype=torch.float64, generator=generator)).Q
        for size in (rows, cols)
    )
    left, right = sides
    return (left * values) @ right.T


def made(family: str, rows: int, cols: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    size = min(rows, cols)
    steps = torch.arange(1, size + 1, dtype=torch.float64)
    noise = torch.randn(rows, cols, dtype=torch.float64, generator=generator) / max(rows, cols) ** 0.5
    if family == "gaussian":
        return noise
    if family == "spiked":
        return noise + composed(torch.tensor([9.0, 5.0, 2.5], dtype=torch.float64)[:size], rows, cols, generator)
    if family == "low_rank_noise":
        return 1e-3 * noise + composed(torch.ones(min(8, size), dtype=torch.float64), rows, cols, generator)
    values = {
        "low_rank": torch.linspace(2, 1, min(8, size), dtype=torch.float64),
        "power_half": steps**-0.5,
        "power_1": steps**-1.0,
        "graded": torch.logspace(0, -7, size, dtype=torch.float64),
        "flat_spike": torch.where(steps == 1, 30.0, 1.0),
        "two_clusters": torch.where(steps <= max(size // 4, 1), 1.0, 0.01),
    }[family]
    return composed(values.double(), rows, cols, generator)


FULL_RANK = ("gaussian", "spiked", "power_half", "power_1", "flat_spike", "two_clusters", "low_rank_noise")
DEFICIENT = ("low_rank", "graded")
FAMILIES = FULL_RANK + DEFICIENT
