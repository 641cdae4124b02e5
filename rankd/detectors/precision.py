"""How far a reading may be off, and what two readings have in common: Precision."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, NamedTuple

from rankd.records import Measurement

MIXED = "mixed"
"""The signature of what comes from readings of several: it has nothing in common with any, itself included."""


class Precision(NamedTuple):
    """Of a reading whose value is not exact. In the metric's own unit.

    Readings of one `signature` were made alike, with the same probes and the same rounding: they err alike, so their
    values are compared as they are. Of others only that counts which what lies between `low` and `high` cannot explain.
    `raw` is the value without the correction for rounding, where there is one: the correction itself may waver.
    """

    signature: str
    low: float
    high: float
    raw: float | None = None


NOT_READ = Precision("not read", 0.0, 0.0)
"""Goes with no value: the layer was measured by a tier that does not give the metric."""


def precision_of(measurement: Measurement, metric: str) -> Precision | None:
    """None where the metric is exact, or nothing else is known of it: then its value alone counts, however made."""
    low_key, high_key, raw_key = _keys(metric)
    extra, value = measurement.extra, measurement.metrics.get(metric)
    if value is None:
        return None if measurement.tier == "exact" else NOT_READ
    if low_key not in extra and raw_key not in extra:
        return None
    low, high, raw = (_number(extra.get(key)) for key in (low_key, high_key, raw_key))
    bar = () if low is None or high is None else (low, high)
    if not bar and raw is None:
        return None
    known = (value, *bar) if raw is None else (value, *bar, raw)
    return Precision(_signature(measurement, raw), min(known), max(known), raw)


def _signature(measurement: Measurement, raw: float | None) -> str:
    """The tier and what was rounded. Whether it was corrected: rows from before corrections are raw. Of estimates the
    method too, since another has other probes; all exact ones agree."""
    tier = measurement.tier
    method = "" if tier == "exact" else measurement.method
    words = (tier, measurement.wire_dtype, method, "" if raw is None else "corrected")
    return " ".join(word for word in words if word)


@cache
def _keys(metric: str) -> tuple[str, str, str]:
    return f"{metric}_low", f"{metric}_high", f"{metric}_raw"


def _number(value: Any) -> float | None:
    """A finite one, else None: rows may hold anything."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return float(value) if known else None
