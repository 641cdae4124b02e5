"""The data that flows from stage to stage. Imports nothing of ours, so that every stage may import it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""From the least to the most urgent."""

State = Literal["firing", "resolved", "rebased"]

ALERT_SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One whole tensor at one optimizer step, assembled from its shards.

    `shape` is the tensor's own; `data` holds its elements row-major in `wire_dtype` (a name of
    `rankd_client.wire.DTYPES`) as raw bytes, empty for a layer that is already known to be non-finite or all-zero:
    there is nothing left to measure in it.
    """

    run: str
    layer: str
    step: int
    shape: tuple[int, ...]
    wire_dtype: str
    source_dtype: str
    data: npt.NDArray[np.uint8]
    role: str = "weight"
    finite: bool = True
    zero: bool = False

    @property
    def rows(self) -> int:
        return self.shape[0]

    @property
    def cols(self) -> int:
        """Columns of the matrix (size(0), -1)."""
        return math.prod(self.shape[1:])

    @property
    def key(self) -> tuple[str, str, str]:
        """What newest-wins and order are kept by: (run, layer, role)."""
        return self.run, self.layer, self.role

    @property
    def noticed(self) -> bool:
        """Non-finite or all-zero: an event that newer snapshots must never displace."""
        return not self.finite or self.zero


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Singular values of a rows × cols matrix.

    `singular_values` is float64, descending, of length min(rows, cols), in units of `scale`, the largest magnitude in
    the matrix: σ = scale · singular_values. Dividing by it first keeps weights of 1e-30 or 1e30 within range.
    An all-zero or empty matrix has scale 0; a non-finite one has no singular values and scale NaN.
    """

    rows: int
    cols: int
    singular_values: npt.NDArray[np.float64]
    scale: float
    method: str

    @property
    def finite(self) -> bool:
        return math.isfinite(self.scale)


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one layer at one step.

    `metrics` maps a name of `rankd.metrics.METRICS` to its value: 0 for an all-zero layer, None for a non-finite one
    (NaN and Infinity never stand in JSON). `extra` holds further keys of the JSON row, kept as they are.
    """

    run: str
    layer: str
    step: int | None
    shape: tuple[int, ...]
    finite: bool
    zero: bool
    metrics: Mapping[str, float | None]
    role: str = "weight"
    method: str = ""
    source_dtype: str = ""
    wire_dtype: str = ""
    measure_seconds: float = 0.0
    time: float | None = None
    """When it was measured: seconds since the Unix epoch. Its alerts carry the same."""
    summary: bytes = b""
    """The spectrum for looking at, as `rankd.spectrum` packs it; not part of the JSON row."""
    extra: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The row of `tail --measurements --json`, as design and docs/protocol.md give it."""
        return {
            "run": self.run,
            "step": self.step,
            "layer": self.layer,
            "rows": self.shape[0],
            "cols": math.prod(self.shape[1:]),
            **self.metrics,
            "finite": self.finite,
            "role": self.role,
            "shape": list(self.shape),
            "method": self.method,
            "source_dtype": self.source_dtype,
            "wire_dtype": self.wire_dtype,
            "measure_seconds": self.measure_seconds,
            "time": self.time,
            **self.extra,
        }


@dataclass(frozen=True, slots=True)
class Verdict:
    """A change of state that a detector saw. A detector that saw none returns None, never a repeated Verdict.

    `value` and `baseline` are in the metric's own unit; `detail` says in words what was seen.
    """

    rule: str
    state: State
    severity: Severity
    metric: str | None
    value: float | None
    baseline: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Alert:
    """A Verdict about a layer (or a whole run), as published. `stream_id`, `seq` and `time` come from record."""

    alert_id: str
    run: str
    layer: str | None
    step: int | None
    severity: Severity
    state: State
    rule: str
    metric: str | None
    value: float | None
    baseline: float | None
    message: str
    advice: str
    stream_id: str = ""
    seq: int = 0
    time: float = 0.0
    """Seconds since the Unix epoch."""

    def published(self, stream_id: str, seq: int, time: float) -> Alert:
        return replace(self, stream_id=stream_id, seq=seq, time=time)

    def to_json(self) -> dict[str, Any]:
        return {
            "schema": ALERT_SCHEMA,
            "alert_id": self.alert_id,
            "run": self.run,
            "layer": self.layer,
            "step": self.step,
            "severity": self.severity,
            "state": self.state,
            "rule": self.rule,
            "metric": self.metric,
            "value": self.value,
            "baseline": self.baseline,
            "message": self.message,
            "advice": self.advice,
            "stream_id": self.stream_id,
            "seq": self.seq,
            "time": self.time,
        }
