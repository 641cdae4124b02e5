"""The estimate tier: traces of functions of the singular values, each with a bar.

Hutch++ (Meyer et al. 2021) by Golub–Kahan quadrature: with the orthonormal rows Q of a range finder (Halko et al.
2011), tr f(M) = tr Qf(M)Qᵀ + tr Pf(M)P, P = 1 − QᵀQ, for any Q. The first part has no variance, and takes from the
second what few large singular values would give it; the second is estimated with probes of fixed length. Both are read
off one block recurrence. The bar is what the probes' variance and the quadrature's two-sided error allow."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from rankd.spectrum.krylov import Operator, Recurrence, draw, unit
from rankd.spectrum.norms import NormBounds, bound_norm
from rankd.spectrum.traces import Traces, read_traces

Values = npt.NDArray[np.float64]

NUM_RANGE = 32
NUM_PROBES = 32
NUM_FRESH = 4
"""Rows of the range, probes beside it, and probes of the whole for the bound of σ₁. Together they fill one tile of a
GPU's product; four times as many probes would halve the spread, which is below a percent from 1,000 rows on."""

MIN_SIZE = 4 * (NUM_RANGE + NUM_PROBES)
"""Of the short side: smaller matrices cost less to solve, and their bars held a little too rarely."""

STEPS = (16, 32, 48, 64)
"""After each, matrices whose bar is narrow enough are done. The bounds of σ₁ are those of the first."""

TRUSTED_REST = 1000.0
"""Units of a product's rounding error that the energy beside the range has to have, as a share of all, to be known."""

GOOD_BAR = 0.008
"""Half-width of the effective rank's bar, relative, at which more steps are not worth their time: an eighth of the
smallest change that the default rule looks for."""

HOPELESS = 3.0
"""A quadrature's error halves with half as many steps again at best: a bar this many times too wide after 32 steps
stays too wide."""

ROUNDING = 2.0
"""Times a norm's rounding that any estimate may be off by."""

QUANTILE = 2.2
"""Of Student's t for 95 %, two-sided, with 30 degrees of freedom 2.04; the rest for the fitted control variate."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """Of a batch: name → (B,) values, lower and upper ends."""

    values: dict[str, Values]
    lows: dict[str, Values]
    highs: dict[str, Values]
    curve: Values
    """(B, P): G(x), relative to ‖A‖_F² = 1: the number of singular values above √x, smoothed over a factor of e."""
    log_x: Values
    """(P,)"""

    @property
    def width(self) -> Values:
        """(B,): half of the effective rank's bar, relative."""
        low, high = self.lows["effective_rank"], self.highs["effective_rank"]
        return (high - low) / (2 * self.values["effective_rank"])


def estimate(operator: Operator, frobenius: Values, keys: Sequence[str], tolerances: Sequence[float]) -> Estimates:
    """Estimates of a batch (B, m, n) of finite matrices with Frobenius norms `frobenius` (B,), not 0, and a short side
    of at least MIN_SIZE. `keys` fix the probes of each, so that two estimates of a matrix before and after a small
    change differ by little more than that change. Bars wider than `tolerances` (B) are not worth much work. Which
    others are in a batch does not change an estimate, rounding apart."""
    _, size, _ = operator.shape
    probes = draw(keys, NUM_RANGE + NUM_PROBES + NUM_FRESH, size, operator)
    basis = _find_range(operator, probes[:, :NUM_RANGE])
    beside = _beside(probes[:, NUM_RANGE:-NUM_FRESH], basis)
    recurrence = Recurrence(operator, torch.cat([basis, beside, unit(probes[:, -NUM_FRESH:])], dim=1))
    recurrence.extend(STEPS[0])
    bounds = bound_norm(*recurrence.coefficients(), NUM_FRESH, size, operator.slack)
    found = _read(recurrence, operator, frobenius, bounds)
    done = found.width <= GOOD_BAR
    for steps in STEPS[1:]:
        if done.all():
            break
        recurrence.extend(steps)
        found = _unless(done, found, _read(recurrence, operator, frobenius, bounds))
        done |= (found.width <= GOOD_BAR) | (found.width > HOPELESS * np.array(tolerances))
    return found


def _find_range(operator: Operator, starts: torch.Tensor) -> torch.Tensor:
    """Orthonormal rows (B, NUM_RANGE, r) that span about the leading singular vectors of the short side: two passes of
    subspace iteration."""
    for _ in range(2):
        starts = operator.forward(operator.adjoint(torch.linalg.qr(starts.mT).Q.mT))
    basis: torch.Tensor = torch.linalg.qr(starts.mT).Q.mT
    return basis


def _beside(probes: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """Unit rows, orthogonal to the basis; twice, for what rounding leaves."""
    for _ in range(2):
        probes = probes - (probes @ basis.mT) @ basis
    return unit(probes)


def _unless(done: npt.NDArray[np.bool_], former: Estimates, found: Estimates) -> Estimates:
    """`found`, but for matrices that are `done` (B,)."""
    pairs = ((former.values, found.values), (former.lows, found.lows), (former.highs, found.highs))
    values, lows, highs = ({name: np.where(done, old[name], new[name]) for name in new} for old, new in pairs)
    curve = np.where(done[:, None], former.curve, found.curve)
    return Estimates(values, lows, highs, curve, found.log_x)


def _read(recurrence: Recurrence, operator: Operator, frobenius: Values, bounds: NormBounds) -> Estimates:
    """What the coefficients say so far."""
    alphas, betas = recurrence.coefficients()
    norm = torch.from_numpy(frobenius).to(alphas.device)
    _, size, _ = operator.shape
    scale = norm[:, None, None]
    split = slice(0, NUM_RANGE + NUM_PROBES)
    traces = read_traces(alphas[:, split] / scale, betas[:, split] / scale)
    found = _combine(traces, size, operator)
    value = torch.minimum(bounds.value, norm)
    ends = torch.minimum(bounds.low, value), torch.minimum(bounds.high, norm * (1 + operator.slack))
    columns = torch.stack([value, *ends, *found.columns]).cpu().numpy()
    sigma, *rest = columns.reshape(-1, 3, len(frobenius))
    named: dict[str, Values] = dict(zip(_NAMES, rest, strict=True))
    named["nuclear_norm"] *= frobenius
    named["spectral_norm"], named["stable_rank"] = sigma, (frobenius / sigma[[0, 2, 1]]) ** 2
    values, lows, highs = ({name: ends[i] for name, ends in named.items()} for i in range(3))
    return Estimates(values, lows, highs, found.curve.cpu().numpy(), traces.y.cpu().numpy())


_NAMES = ("nuclear_norm", "effective_rank", "effective_rank_energy", "participation_ratio")


@dataclass(frozen=True, slots=True)
class _Found:
    """`columns`: value, low and high of each of _NAMES, (B,) each, for ‖A‖_F = 1; `curve` (B, P)."""

    columns: list[torch.Tensor]
    curve: torch.Tensor


def _combine(traces: Traces, size: int, operator: Operator) -> _Found:
    """Range and probes together, and what their errors come to, in logarithms of each metric."""
    num_beside = size - NUM_RANGE
    first, second, middle = traces.first, traces.second, traces.middle
    by_probe = torch.stack(
        [middle @ traces.root, middle @ traces.root_log, middle @ traces.linear, second], dim=2
    )  # (B, k, 4), the third without what is known exactly
    probes = _controlled(num_beside * by_probe[:, NUM_RANGE:], num_beside, first, operator)
    total = by_probe[:, :NUM_RANGE].sum(dim=1) + probes.mean(dim=1)
    root, root_log, linear, fourth = total.unbind(dim=1)
    entropy = torch.log(root) - root_log / (2 * root)
    # −Σ λ log λ, where Σ λ is 1 but for rounding, which would be made 36 times as large by the integral's reach.
    found = first[:, :NUM_RANGE].sum(dim=1) + num_beside * first[:, NUM_RANGE:].mean(dim=1)
    trace = torch.where(_is_in_range(first, operator), found, 1.0)
    energy = (linear - trace * (traces.linear / (1 + traces.y.exp())).sum()) / trace + torch.log(trace)
    slopes = [
        _row(1 / root, 0, 0, 0),
        _row(1 / root + root_log / (2 * root**2), -1 / (2 * root), 0, 0),
        _row(torch.zeros_like(root), 0, 1, 0),
        _row(torch.zeros_like(root), 0, 0, -1 / fourth),
    ]
    logs = (torch.log(root), entropy, energy, -torch.log(fourth))
    sums = [traces.upper, traces.lower, middle]
    upper, lower, centre = (c[:, :NUM_RANGE].sum(dim=1) + num_beside * c[:, NUM_RANGE:].mean(dim=1) for c in sums)
    # Of nothing, rounding makes singular values of about this size: they are counted, and should not be.
    dust = num_beside * operator.epsilon / math.sqrt(size)
    columns = []
    for index, (log, slope) in enumerate(zip(logs, slopes, strict=True)):
        spread = (probes * slope[:, None, :]).sum(dim=2).std(dim=1) / math.sqrt(NUM_PROBES - 2)
        weights = slope[:, :1] * traces.root + slope[:, 1:2] * traces.root_log + slope[:, 2:3] * traces.linear
        up, down = ((bound - centre) * weights for bound in (upper, lower))
        more, less = torch.maximum(up, down).sum(dim=1), torch.minimum(up, down).sum(dim=1)
        rounding = ROUNDING * operator.slack + (dust / root * torch.log(root / dust).clamp(min=1) if index < 2 else 0)
        margin = QUANTILE * spread + rounding
        columns += [log.exp(), (log + less - margin).exp(), (log + more + margin).exp()]
    return _Found(columns, centre)


def _row(*slopes: torch.Tensor | float) -> torch.Tensor:
    """(B, 4)"""
    like = next(slope for slope in slopes if isinstance(slope, torch.Tensor))
    return torch.stack([s if isinstance(s, torch.Tensor) else torch.full_like(like, s) for s in slopes], dim=1)


def _is_in_range(first: torch.Tensor, operator: Operator) -> torch.Tensor:
    """(B,): nearly all of M. What is left of its trace, as 1 less what the range has, is of rounding then: a regression
    on it was seen to make 4,000 singular values of 1e-5 fifteen times as large."""
    return first[:, :NUM_RANGE].sum(dim=1) >= 1 - TRUSTED_REST * operator.epsilon


def _controlled(values: torch.Tensor, num_beside: int, first: torch.Tensor, operator: Operator) -> torch.Tensor:
    """(B, k, F) `values` of the probes less what their errors of tr M, which is known to be 1, say of theirs: a
    regression on it."""
    rest = 1 - first[:, :NUM_RANGE].sum(dim=1)
    error = num_beside * first[:, NUM_RANGE:] - rest[:, None]
    error = torch.where(_is_in_range(first, operator)[:, None], 0.0, error)
    centred = error - error.mean(dim=1, keepdim=True)
    squares = centred.square().sum(dim=1).clamp(min=1e-300)
    slope = (centred[:, :, None] * (values - values.mean(dim=1, keepdim=True))).sum(dim=1) / squares[:, None]
    return values - slope[:, None, :] * error[:, :, None]
