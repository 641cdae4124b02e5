"""The readings of a stack's matrices → one reading of the stack, which shows its weakest expert."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import Any

from rankd.records import TIERS, Reading

MAX_LISTED = 16
"""Indices of experts in a row: one that is stored for every measurement."""

Combine = Callable[[Sequence[float]], float]

COMBINED: dict[str, Combine] = {
    "spectral_norm": max,
    "frobenius_norm": lambda norms: math.hypot(*norms),
    "nuclear_norm": sum,
}
"""What the stack has of its experts' values, where it is not the smallest. The last two are those of the block-diagonal
matrix of all experts. All grow with each value, so that they take bars from ends to ends."""

RAW = "_raw"

_SORTED_BY = ("effective_rank", "stable_rank")
"""The lowest expert is the lowest by the first of these that all have."""


def summarise_stack(readings: Sequence[Reading]) -> Reading:
    """One reading of a stack, of one reading per expert.

    Each metric is the smallest over the experts that are not all zero, but for those in COMBINED; bars are combined
    alike. 0 if all are zero, None if one is non-finite or has no such number. `further` and `summary` are those of the
    lowest expert, and `further` tells of the others: `num_zero_parts`, and `experts` with `num`, `lowest` (its index),
    the spread of `effective_rank` over the finite ones that are not zero, and the first 16 of `zero` and `nonfinite`.
    Raises ValueError for no readings.
    """
    if not readings:
        raise ValueError("a stack of no readings; expected one or more")
    zero = [index for index, reading in enumerate(readings) if reading.zero]
    nonfinite = [index for index, reading in enumerate(readings) if not reading.finite]
    alive = [index for index, reading in enumerate(readings) if reading.finite and not reading.zero]
    metrics, bars = _combine(readings, [readings[index] for index in alive], finite=not nonfinite)
    lowest = _lowest(readings, alive)
    shown = readings[lowest] if lowest is not None else readings[0]
    measured = [readings[index] for index in alive] or readings
    experts = {
        "num": len(readings),
        "lowest": lowest,
        "effective_rank": _spread(readings[index].metrics.get("effective_rank") for index in alive),
        "zero": zero[:MAX_LISTED],
        "nonfinite": nonfinite[:MAX_LISTED],
    }
    return Reading(
        metrics=metrics,
        method="+".join(dict.fromkeys(reading.method for reading in measured)),
        tier=min((reading.tier for reading in measured), key=TIERS.index),
        bars=bars,
        finite=not nonfinite,
        zero=len(zero) == len(readings),
        further={**shown.further, **_raw(measured), "num_zero_parts": len(zero), "experts": experts},
        summary=shown.summary if not nonfinite else b"",
        seconds=sum(reading.seconds for reading in readings),
    )


def _combine(
    readings: Sequence[Reading], alive: Sequence[Reading], finite: bool
) -> tuple[dict[str, float | None], dict[str, tuple[float, float]]]:
    """Metrics and bars of the stack; `alive` are the readings of experts that are finite and not all zero."""
    metrics: dict[str, float | None] = {}
    bars: dict[str, tuple[float, float]] = {}
    for name in dict.fromkeys(name for reading in readings for name in reading.metrics):
        if not finite or not alive:
            metrics[name] = 0.0 if finite else None
            continue
        combine = COMBINED.get(name, min)
        values = _numbers(reading.metrics.get(name) for reading in alive)
        metrics[name] = value = None if values is None else _finite(combine(values))
        if value is None or values is None:
            continue
        ends = [reading.bars.get(name, (own, own)) for reading, own in zip(alive, values, strict=True)]
        low, high = (combine(side) for side in zip(*ends, strict=True))
        # The smallest may be an exact one, below every other's bar.
        if low < high and math.isfinite(high - low):
            bars[name] = low, high
    return metrics, bars


def _raw(readings: Sequence[Reading]) -> dict[str, float]:
    """The values before noise was taken off, combined as those after it are."""
    names = dict.fromkeys(key for reading in readings for key in reading.further if key.endswith(RAW))
    found = {name: _numbers(reading.further.get(name) for reading in readings) for name in names}
    return {
        name: COMBINED.get(name.removesuffix(RAW), min)(values) for name, values in found.items() if values is not None
    }


def _lowest(readings: Sequence[Reading], alive: Sequence[int]) -> int | None:
    for name in _SORTED_BY:
        values = _numbers(readings[index].metrics.get(name) for index in alive)
        if values:
            return alive[values.index(min(values))]
    return None


def _spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    numbers = _numbers(values)
    return {"min": min(numbers), "median": median(numbers), "max": max(numbers)} if numbers else None


def _numbers(values: Iterable[float | None]) -> list[float] | None:
    """None if one is missing: the smallest of those that are known is not the smallest."""
    found = list(values)
    numbers = [value for value in found if value is not None]
    return numbers if len(numbers) == len(found) else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
