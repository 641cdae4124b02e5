"""The rows of the history as Python has them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from rankd.records import METRIC_NAMES, Measurement

MEASUREMENT_COLUMNS = (
    "m.n, l.name, l.role, m.step, m.time, k.shape, k.method, k.source_dtype, k.wire_dtype, m.finite, m.zero, "
    f"m.measure_seconds, m.extra, {', '.join(f'm.{name}' for name in METRIC_NAMES)}"
)
"""What `measurement_of` takes: measurement m, layer l, kind k."""


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run. The counts of measurements and alerts are of all that were ever recorded, deleted ones too; times are
    seconds since the Unix epoch."""

    name: str
    num_layers: int
    num_measurements: int
    num_alerts: int
    num_firing: int
    first_time: float | None
    last_time: float | None
    last_step: int | None


@dataclass(frozen=True, slots=True)
class LayerRow:
    """How new what is known of a layer is, and how often a snapshot of it gave way to a newer one unmeasured."""

    name: str
    role: str
    last_step: int | None
    last_time: float | None
    num_measurements: int
    num_superseded: int


def measurement_of(run: str, row: tuple[Any, ...]) -> tuple[int, Measurement]:
    """A row of MEASUREMENT_COLUMNS as (n, measurement), without its spectrum's summary."""
    n, layer, role, step, time, shape, method, source_dtype, wire_dtype, finite, zero, seconds, extra, *metrics = row
    return n, Measurement(
        run=run,
        layer=layer,
        step=step,
        shape=_shape(shape),
        finite=bool(finite),
        zero=bool(zero),
        metrics=dict(zip(METRIC_NAMES, metrics, strict=True)),
        role=role,
        method=method,
        source_dtype=source_dtype,
        wire_dtype=wire_dtype,
        measure_seconds=seconds,
        time=time,
        extra=json.loads(extra) if extra else {},
    )


@lru_cache(maxsize=4096)
def _shape(text: str) -> tuple[int, ...]:
    return tuple(json.loads(text))
