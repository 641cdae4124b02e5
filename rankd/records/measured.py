"""What was measured, and the JSON row of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

METRIC_NAMES = (
    "stable_rank",
    "effective_rank",
    "effective_rank_energy",
    "spectral_norm",
    "frobenius_norm",
    "participation_ratio",
    "nuclear_norm",
    "effective_rank_ratio",
    "stable_rank_ratio",
    "num_above_mp_edge",
)
"""Those of `rankd.metrics.METRICS`, which the history has columns for; others are further keys of a row. New ones come
at the end (`rankd.store.columns`)."""

CONTRACT_METRICS = ("stable_rank", "effective_rank", "spectral_norm")
"""Those that every row has."""

REPORTED = "reported"
"""The method of a row whose numbers the trainer computed. Of a matrix whose shape it did not tell, rows and cols are 0.
"""

Tier = Literal["norms", "estimate", "exact"]
TIERS: tuple[Tier, ...] = get_args(Tier)
"""From the cheapest to the dearest."""


def unmeasured_keys(finite: bool) -> dict[str, float | None]:
    """The noise of a matrix with nothing to measure: none if it is all zero, unknown if it is not finite."""
    return dict.fromkeys(("wire_noise_floor", "source_noise_floor"), 0.0 if finite else None)


@dataclass(frozen=True, slots=True)
class Reading:
    """What was measured of one matrix, or of a stack of them.

    `metrics` as in a Measurement. `bars`: of each metric that is not exact, between which values it lies. `further`:
    more keys of the JSON row. `summary` as `rankd.summary.summarise` packs it, b"" where there is no whole spectrum.
    """

    metrics: Mapping[str, float | None]
    method: str
    tier: Tier = "exact"
    bars: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    finite: bool = True
    zero: bool = False
    further: Mapping[str, Any] = field(default_factory=dict)
    summary: bytes = b""
    seconds: float = 0.0

    def extra(self) -> dict[str, Any]:
        """Further keys of the measurement's JSON row: `tier`, the bars as `m_low` and `m_high`, and `further`."""
        bars = {
            f"{name}_{end}": value for name, bar in self.bars.items() for end, value in zip(_ENDS, bar, strict=True)
        }
        return {"tier": self.tier, **bars, **self.further}


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

    @classmethod
    def of(
        cls, reading: Reading, run: str, layer: str, step: int | None, shape: tuple[int, ...], **more: Any
    ) -> Measurement:
        """What `reading` says of a layer at a step; `more`: what else is known of it, such as the dtypes."""
        return cls(
            run=run,
            layer=layer,
            step=step,
            shape=shape,
            finite=reading.finite,
            zero=reading.zero,
            metrics=reading.metrics,
            method=reading.method,
            summary=reading.summary,
            extra=reading.extra(),
            **{"measure_seconds": reading.seconds, **more},
        )

    @property
    def tier(self) -> str:
        """Rows from before there were tiers are exact."""
        return str(self.extra.get("tier", "exact"))

    def bar(self, metric: str) -> tuple[float, float] | None:
        """Between which values the metric lies; None where it is exact, or nothing is known of that."""
        low, high = (self.extra.get(f"{metric}_{end}") for end in _ENDS)
        if low is None or high is None or not (_is_number(low) and _is_number(high)):
            return None
        return float(low), float(high)

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Measurement:
        """The measurement of a row as `to_json` writes it. Needed are run, step, layer, rows, cols and the first three
        metrics below, each of which may be null; whatever else is there but unknown is kept. All zero is a finite row
        in which those three, as far as they are numbers, are 0.

        Raises ValueError naming the key, its value and what was expected.
        """
        for key in _NEEDED:
            if key not in row:
                raise ValueError(f"{key} is missing; expected at least {', '.join(_NEEDED)}")
        for key, value in row.items():
            check = _CHECKS.get(key)
            if check is not None and not check[0](value):
                shown = repr(value)
                raise ValueError(f"{key} is {shown if len(shown) <= 100 else shown[:100] + '…'}; expected {check[1]}")
        metrics = {name: _float(row[name]) for name in METRIC_NAMES if name in row}
        shape = tuple(row.get("shape", (row["rows"], row["cols"])))
        if shape[0] != row["rows"] or math.prod(shape[1:]) != row["cols"]:
            raise ValueError(f"shape is {list(shape)}; expected one of {row['rows']} rows and {row['cols']} columns")
        finite = row.get("finite", True)
        known = [metrics[name] for name in CONTRACT_METRICS if metrics[name] is not None]
        return cls(
            run=row["run"],
            layer=row["layer"],
            step=row["step"],
            shape=shape,
            finite=finite,
            zero=finite and known != [] and not any(known),
            metrics=metrics,
            role=row.get("role", "weight"),
            method=row.get("method", ""),
            source_dtype=row.get("source_dtype", ""),
            wire_dtype=row.get("wire_dtype", ""),
            measure_seconds=float(row.get("measure_seconds", 0.0)),
            time=_float(row.get("time")),
            extra={key: value for key, value in row.items() if key not in _CHECKS},
        )

    def to_json(self) -> dict[str, Any]:
        """The row of `tail --measurements --json`, as design and docs/protocol.md give it."""
        return {
            "run": self.run,
            "step": self.step,
            "layer": self.layer,
            "rows": self.shape[0],
            "cols": math.prod(self.shape[1:]),
            **{name: value for name, value in self.metrics.items() if name in CONTRACT_METRICS},
            "finite": self.finite,
            **{name: value for name, value in self.metrics.items() if name not in CONTRACT_METRICS},
            "role": self.role,
            "shape": list(self.shape),
            "method": self.method,
            "source_dtype": self.source_dtype,
            "wire_dtype": self.wire_dtype,
            "measure_seconds": self.measure_seconds,
            "time": self.time,
            **self.extra,
        }


def _float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _is_text(value: Any) -> bool:
    return type(value) is str


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _is_number(value: Any) -> bool:
    return (type(value) is float and math.isfinite(value)) or (type(value) is int and abs(value) < 1 << 1023)


def _is_number_or_null(value: Any) -> bool:
    return value is None or _is_number(value)


_TEXT = (_is_text, "a text")
_SIZE = (_is_size, "a whole number from 0 to 2^63 - 1")
_CHECKS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "run": _TEXT,
    "step": (lambda value: value is None or _is_size(value), f"{_SIZE[1]}, or null"),
    "layer": _TEXT,
    "rows": _SIZE,
    "cols": _SIZE,
    **dict.fromkeys((*METRIC_NAMES, "time"), (_is_number_or_null, "a finite number or null")),
    "finite": (lambda value: type(value) is bool, "true or false"),
    "role": _TEXT,
    "shape": (lambda value: type(value) is list and value != [] and all(map(_is_size, value)), "a list of sizes"),
    "method": _TEXT,
    "source_dtype": _TEXT,
    "wire_dtype": _TEXT,
    "measure_seconds": (_is_number, "a finite number"),
}
"""The keys of a measurement's JSON row: what each has to be, and that in words."""

_ENDS = ("low", "high")

_NEEDED = ("run", "step", "layer", "rows", "cols", *CONTRACT_METRICS)
