"""Ways to watch a training by measuring in its loop, on its own device. Each reads the same fp32 matrices."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from _tap_training import Training
from _tap_ways import Way
from torch import Tensor

POWER_STEPS = 10


def svdvals(matrices: Tensor) -> Tensor:
    """Singular values of (count, rows, cols), one matrix after the other: torch does no better with them at once."""
    return torch.stack([torch.linalg.svdvals(matrix) for matrix in matrices])


def svdvals_gesvda(matrices: Tensor) -> Tensor:
    """By the fastest of cuSOLVER's drivers, matrices of a shape at once."""
    return torch.linalg.svdvals(matrices, driver="gesvda" if matrices.is_cuda else None)


def gram(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    """Singular values as roots of the Gram matrices' eigenvalues, computed in `dtype`."""
    wide = matrices.to(dtype)
    if wide.shape[-2] > wide.shape[-1]:
        wide = wide.mT
    return torch.linalg.eigvalsh(wide @ wide.mT).clamp_min(0).sqrt()


def gram_float64(matrices: Tensor) -> Tensor:
    return gram(matrices, torch.float64)


def gram_float32(matrices: Tensor) -> Tensor:
    return gram(matrices, torch.float32)


def power(matrices: Tensor) -> Tensor:
    """The largest singular value of each, from below, by steps of power iteration on W Wᵀ from the same start."""
    vectors = torch.ones(*matrices.shape[:-2], matrices.shape[-1], 1, dtype=matrices.dtype, device=matrices.device)
    for _ in range(POWER_STEPS):
        vectors = matrices.mT @ (matrices @ vectors)
        vectors = vectors / torch.linalg.vector_norm(vectors, dim=-2, keepdim=True)
    return torch.linalg.vector_norm(matrices @ vectors, dim=-2)


METHODS = {
    "svdvals": (svdvals, "torch.linalg.svdvals of each matrix, fp32, default driver"),
    "svdvals, gesvda": (svdvals_gesvda, 'torch.linalg.svdvals(driver="gesvda"), fp32, matrices of a shape at once'),
    "Gram float64": (gram_float64, "Gram matrix and eigvalsh in float64, matrices of a shape at once"),
    "Gram float32": (gram_float32, "Gram matrix and eigvalsh in float32, matrices of a shape at once"),
    "σ₁ by power iteration": (power, f"{POWER_STEPS} steps, fp32, matrices of a shape at once"),
}


def by_shape(matrices: Iterable[Tensor]) -> list[list[Tensor]]:
    groups: dict[torch.Size, list[Tensor]] = {}
    for matrix in matrices:
        groups.setdefault(matrix.shape, []).append(matrix)
    return list(groups.values())


class InLoop(Way):
    """The values go to pinned memory without being waited for, and are read at the next look: only what the method
    itself makes the host wait for is charged."""

    def __init__(self, training: Training, method: str) -> None:
        super().__init__(training)
        self.name = f"in-loop {method}"
        self._measure, self.how = METHODS[method]
        self._groups = by_shape(training.matrices())
        self._values: list[Tensor] = []

    @torch.no_grad()
    def watch(self, step: int) -> None:
        measured = [self._measure(torch.stack(group)) for group in self._groups]
        if not self._values:
            is_cuda = self.training.device.type == "cuda"
            self._values = [torch.empty(m.shape, dtype=m.dtype, pin_memory=is_cuda) for m in measured]
            self.num_bytes = sum(values.numel() * values.element_size() for values in self._values)
        for values, new in zip(self._values, measured, strict=True):
            values.copy_(new, non_blocking=True)
