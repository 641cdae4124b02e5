"""Recorded measurements as other settings would have read them: estimates with bars, rounded and corrected values."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from rankd.records import Measurement

JITTER = 0.001
"""Of each estimate by itself, besides the error that all of one setting have in common."""

READ = ("effective_rank", "stable_rank", "spectral_norm")


@dataclass(frozen=True)
class Setting:
    """How matrices are read: `bar` is the half-width of the bars of an estimate; `noise` how much of what is missing to
    the full effective rank rounding adds to it, `waver` how far below the truth the correction may come out."""

    tier: str
    wire_dtype: str
    bar: float = 0.0
    noise: float = 0.0
    waver: float = 0.0


SETTINGS = {
    "exact float32": Setting("exact", "float32"),
    "exact bfloat16": Setting("exact", "bfloat16", noise=0.0015, waver=0.002),
    "exact int8": Setting("exact", "int8", noise=0.006, waver=0.05),
    "exact float8_e4m3fn": Setting("exact", "float8_e4m3fn", noise=0.025, waver=0.15),
    "estimate float32": Setting("estimate", "float32", bar=0.02),
    "estimate bfloat16": Setting("estimate", "bfloat16", bar=0.05, noise=0.0015, waver=0.002),
    "norms float32": Setting("norms", "float32", bar=0.01),
}


def read_as(measurement: Measurement, name: str, seed: int) -> Measurement:
    """The measurement as the setting `name` would have given it; its truth is within its bars, and its errors follow
    from `seed`, the layer and the setting, as with fixed probes."""
    setting = SETTINGS[name]
    shared = random.Random(f"{seed} {name} {measurement.layer}")
    own = random.Random(f"{seed} {name} {measurement.layer} {measurement.step}")
    metrics: dict[str, float | None] = dict(measurement.metrics)
    extra: dict[str, Any] = {**measurement.extra, "tier": setting.tier}
    for metric in READ:
        value, error = metrics[metric], shared.uniform(-1, 1)
        if not value:
            continue
        if metric == "effective_rank" and setting.tier == "norms":
            metrics[metric] = None
            continue
        raw = None
        if metric == "effective_rank" and setting.noise:
            raw = value + setting.noise * max(0.0, min(measurement.shape) - value)
            value *= 1 - setting.waver * own.random()
        metrics[metric], more = _estimated(metric, value, raw, error, own, setting.bar)
        extra |= more
    return replace(measurement, metrics=metrics, extra=extra, method=setting.tier, wire_dtype=setting.wire_dtype)


def _estimated(
    metric: str, value: float, raw: float | None, error: float, own: random.Random, bar: float
) -> tuple[float, Mapping[str, float]]:
    """What is read where the truth is `value`, and its further keys."""
    wrong = 1.0
    if bar:
        wrong = (1 + error * (bar - 2 * JITTER)) * (1 + own.uniform(-JITTER, JITTER))
    read, read_raw = value * wrong, None if raw is None else raw * wrong
    if not bar and raw is None:
        return read, {}
    more = {f"{metric}_low": read / (1 + bar), f"{metric}_high": (read_raw or read) / (1 - bar)}
    return read, more if read_raw is None else {**more, f"{metric}_raw": read_raw}
