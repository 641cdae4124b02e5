"""The true values of what rankd measures of a matrix, and whether a reading and its bars agree with them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from rankd.records import Reading

Bar = tuple[float, float]

CLAIMED_EXACT = 1e-6
"""What a metric without a bar may be off by, relatively, in a reading that is not exact."""
DERIVED = ("effective_rank_ratio", "stable_rank_ratio", "num_above_mp_edge")
"""Others over a constant of the shape, and a count: they are right where those are."""
TRUTH_ERROR = 1e-12
"""What the truth itself may be off by."""


def true_singular_values(weight: Tensor) -> Tensor:
    """float64 `svdvals` of the very matrix, on its own device, by LAPACK's or cuSOLVER's most careful driver."""
    values: Tensor = torch.linalg.svdvals(weight.double(), driver="gesvd" if weight.is_cuda else None)
    return values


def true_metrics(values: Tensor) -> dict[str, float]:
    """Every metric by its definition, from `true_singular_values`. Shares no code with rankd."""
    values = values.cpu()
    energy = values.square()
    return {
        "stable_rank": float(energy.sum() / energy[0]),
        "effective_rank": _exp_entropy(values),
        "effective_rank_energy": _exp_entropy(energy),
        "spectral_norm": float(values[0]),
        "frobenius_norm": math.sqrt(float(energy.sum())),
        "participation_ratio": float(energy.sum().square() / energy.square().sum()),
        "nuclear_norm": float(values.sum()),
    }


def conditioning(values: Tensor) -> str:
    """How `true_singular_values` end: `deficient` where the last is zero as far as float32 can tell, `ill` where it is
    so small that the square of it is, and `full`."""
    share = float(values[-1] / values[0])
    eps = torch.finfo(torch.float32).eps
    return "deficient" if share <= eps else "ill" if share <= eps**0.5 else "full"


def relative_errors(reading: Reading, truths: Mapping[str, float]) -> dict[str, float]:
    """Metric → how far it is off, of those that were measured. An exact reading has to have a value for each."""
    values = {name: reading.metrics[name] for name in truths if name in reading.metrics}
    if reading.tier == "exact" and None in values.values():
        raise ValueError(f"an exact reading is {values}; expected numbers")
    return {name: abs(value / truths[name] - 1) for name, value in values.items() if value is not None}


def worst_errors(readings: Iterable[Reading], truths: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Metric → the largest of its errors."""
    worst: dict[str, float] = {}
    for pair in zip(readings, truths, strict=True):
        for name, error in relative_errors(*pair).items():
            worst[name] = float(f"{max(error, worst.get(name, 0.0)):.3g}")
    return worst


def bars_of(reading: Reading) -> Iterator[tuple[str, float, Bar]]:
    """(metric, value, bar) of a reading that is not exact; where it has no bar, what that claims."""
    for name, value in reading.metrics.items():
        if value is not None and name not in DERIVED:
            claimed = CLAIMED_EXACT * abs(value)
            yield name, value, reading.bars.get(name, (value - claimed, value + claimed))


def contains(bar: Bar, truth: float) -> bool:
    slack = TRUTH_ERROR * abs(truth)
    return bar[0] - slack <= truth <= bar[1] + slack


def missed_bars(reading: Reading, truths: Mapping[str, float]) -> list[str]:
    """The metrics whose true value is outside the bar; an exact reading has no bars."""
    if reading.tier == "exact":
        return []
    return [name for name, _, bar in bars_of(reading) if name in truths and not contains(bar, truths[name])]


def _exp_entropy(weights: Tensor) -> float:
    return float(torch.special.entr(weights / weights.sum()).sum().exp())
