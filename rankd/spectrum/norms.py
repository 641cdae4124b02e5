"""The norms tier: σ₁ between two bounds, from a few Golub–Kahan steps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from rankd.spectrum.krylov import Operator, Recurrence, draw, unit

FAILURE = 1e-4
"""Probability that σ₁ lies above its upper bound, over the choice of the fresh probes."""

NUM_FRESH = 3
STEPS_CPU, STEPS_CUDA = 6, 18
"""A CPU's steps are as many as fit a twentieth of what `svdvals` costs; on a GPU more of them cost little, and each
makes the upper bound tighter; beyond 32 the batch of tridiagonal matrices would be solved one by one."""

_GRID = 160  # points 12 % apart: that much, of a distance, is the bound too high at most
_FINEST, _COARSEST = 1e-7, 4.0
"""Relative distances above the largest Ritz value at which the bound is looked for; a point too far up is no error."""


@dataclass(frozen=True, slots=True)
class NormBounds:
    """(B,) float64 each, on the recurrences' device: low ≤ σ₁ ≤ high, the latter with probability 1 − FAILURE. `value`
    is `low` but for rounding. `best`: (B,), the start vector that led there; `shape` (B, q) its Ritz vector in the
    vectors of its steps."""

    value: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    best: torch.Tensor
    shape: torch.Tensor


def measure_norms(
    operator: Operator, keys: Sequence[str], warm: Sequence[torch.Tensor | None]
) -> tuple[NormBounds, torch.Tensor]:
    """σ₁ of a batch, and (B, r) the vectors that showed it, to start warm from the next time. `keys` fix the probes; a
    `warm` vector (r,) of the last time starts a recurrence of its own beside them."""
    num, size, _ = operator.shape
    starts = draw(keys, 1 + NUM_FRESH, size, operator)
    for index, vector in enumerate(warm):
        if vector is not None and len(vector) == size:
            starts[index, 0] = vector.to(starts)
    steps = min(STEPS_CUDA if operator.device.type == "cuda" else STEPS_CPU, size)
    recurrence = Recurrence(operator, unit(starts), keep=True)
    recurrence.extend(steps)
    bounds = bound_norm(*recurrence.coefficients(), NUM_FRESH, size, operator.slack)
    rows = torch.arange(num, device=operator.device)
    seen = torch.stack([right[rows, bounds.best] for right in recurrence.rights[:steps]], dim=1)
    return bounds, (bounds.shape.to(seen.dtype)[:, None, :] @ seen).squeeze(1)


def bound_norm(alphas: torch.Tensor, betas: torch.Tensor, num_fresh: int, size: int, slack: float) -> NormBounds:
    """Of coefficients (B, k, q), of which the last `num_fresh` start vectors are uniform on the sphere of R^`size` (r).

    The lower bound is the largest Ritz value: rounding apart, no singular value is below what a vector shows. A
    residual only says that *some* singular value is near, and a warm start is blind to a new orthogonal direction; so
    the upper bound rests on fresh probes alone (Hochstenbach 2013, "Probabilistic upper bounds for the matrix
    two-norm"): the Lanczos polynomial p_q of a start vector with component γ along the leading singular vector has |γ
    p_q(σ₁²)| ≤ 1, so that σ₁² > t with p_q(t) = 1/τ only where |γ| < τ. That happens to one probe with probability p ≤
    τ √(2r/π), and to all of them with p^num_fresh = FAILURE; hence the largest of their bounds. `slack`: an Operator's.
    """
    a, b = alphas**2, betas**2
    diagonal = a.clone()
    diagonal[:, :, 1:] += b[:, :, :-1]
    off = (a * b).sqrt()  # off[q-1] leads on to the residual
    ritz, vectors = _largest_eigenpair(diagonal, off[:, :, :-1])
    theta, best = ritz.max(dim=1)
    fresh = slice(alphas.shape[1] - num_fresh, None)
    share = FAILURE ** (1 / num_fresh)
    tau = min(0.5, share / math.sqrt(2 * size / math.pi))
    # A probe that sees less than another has its say from its own largest Ritz value on.
    bound = _solve(diagonal[:, fresh], off[:, fresh], ritz[:, fresh], math.log(1 / tau)).amax(dim=1)
    value, high = theta.clamp(min=0).sqrt(), torch.maximum(bound, theta).clamp(min=0).sqrt()
    shape = vectors[torch.arange(len(best), device=best.device), best]
    return NormBounds(value, value * (1 - slack), high * (1 + slack), best, shape)


def _largest_eigenpair(diagonal: torch.Tensor, off: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """(B, k) and (B, k, q), of symmetric tridiagonal matrices."""
    matrices = torch.diag_embed(diagonal) + torch.diag_embed(off, 1) + torch.diag_embed(off, -1)
    values, vectors = torch.linalg.eigh(matrices.flatten(0, 1))
    return values[:, -1].view(diagonal.shape[:2]), vectors[:, :, -1].view(diagonal.shape)


def _solve(diagonal: torch.Tensor, off: torch.Tensor, ritz: torch.Tensor, target: float) -> torch.Tensor:
    """(B, k): a t ≥ the root above `ritz` of log p_q(t) = `target`, the next point of a grid; p_q grows above it."""
    grid = torch.logspace(math.log10(_FINEST), math.log10(_COARSEST), _GRID, dtype=torch.float64, device=ritz.device)
    t = ritz[:, :, None] * (1 + grid)
    ratio, coupling, logs = torch.ones_like(t), torch.zeros_like(t[:, :, :1]), torch.zeros_like(t)
    for step in range(diagonal.shape[2]):
        ratio = t - diagonal[:, :, step : step + 1] - coupling**2 / ratio.clamp(min=1e-300)
        coupling = off[:, :, step : step + 1]
        logs += torch.log((ratio / coupling.clamp(min=1e-300)).clamp(min=1e-300))
    reached = logs >= target
    first = reached.to(torch.int8).argmax(dim=2, keepdim=True)
    found = t.gather(2, first).squeeze(2)
    # Beyond the grid nothing is known but that ‖A‖ is finite: so few steps are the caller's choice.
    return torch.where(reached.any(dim=2), found, torch.inf)
