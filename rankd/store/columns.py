"""What a measurement has of metrics and further keys ↔ the columns of its row, and what is left for JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import compress
from types import NoneType
from typing import Any, NamedTuple

from rankd.records import METRIC_NAMES, Measurement

NUMBERS = (
    "wire_noise_floor",
    "source_noise_floor",
    "error_bound",
    "effective_rank_raw",
    "nuclear_norm_raw",
    "effective_rank_ratio_raw",
)
FLAGS = ("inside_noise",)
"""Further keys that have columns. New ones come at the end: older rows have their bits."""

FURTHER = (*NUMBERS, *FLAGS)
COLUMNS = (*METRIC_NAMES, *FURTHER)

CORRECTED = ("effective_rank", "nuclear_norm", "effective_rank_ratio")
"""Their bars mostly lie from NAME to NAME_raw, and need no room then."""

FIRST_METRICS = METRIC_NAMES[:6]
"""Those that rows of versions 1 and 2 have columns for: all six, always."""

LATER_METRICS = METRIC_NAMES[6:]

OWN_NUMBERS = (*LATER_METRICS, *NUMBERS)
"""Columns since version 3 that take room where they are not NULL."""


def _bits(names: tuple[str, ...], first: int) -> dict[str, int]:
    return {name: 1 << first + at for at, name in enumerate(names)}


# Of `has`: which columns a row has, if only as null, and which bars lie from NAME to NAME_raw.
_METRICS, _NUMBERS, _FLAGS, _BARS = _bits(METRIC_NAMES, 0), _bits(NUMBERS, 24), _bits(FLAGS, 40), _bits(CORRECTED, 48)
_COLUMNS = _METRICS | _NUMBERS | _FLAGS
_FURTHER = (
    *((name, bit, (float, NoneType)) for name, bit in _NUMBERS.items()),
    *((name, bit, (bool, NoneType)) for name, bit in _FLAGS.items()),
)
_BAR_KEYS = tuple((name, f"{name}_raw", f"{name}_low", f"{name}_high", bit) for name, bit in _BARS.items())

HAS_FIRST_METRICS = sum(_METRICS[name] for name in FIRST_METRICS)
_HAS_METRICS = sum(_METRICS.values())
HAS_ALL = sum((*_COLUMNS.values(), *_BARS.values()))
"""No row has more."""


class Packed(NamedTuple):
    """`values` in the order of COLUMNS. `tier` "" and `has` stand in the row's kind; `rest` is JSON."""

    tier: str
    has: int
    values: list[Any]
    rest: dict[str, Any]


def pack(measurement: Measurement) -> Packed:
    """Only what a column gives back as it was goes there."""
    metrics, rest = measurement.metrics, dict(measurement.extra)
    has, others = _known(tuple(metrics))
    has |= _pop_bars(metrics, rest)
    values = [metrics.get(name) for name in METRIC_NAMES]
    for name, bit, types in _FURTHER:
        value = rest.get(name)
        if type(value) in types and name in rest:
            has |= bit
            del rest[name]
            values.append(value)
        else:
            values.append(None)
    tier = rest.get("tier")
    if tier and type(tier) is str:
        del rest["tier"]
    else:
        tier = ""
    if others:
        rest = {**{name: metrics[name] for name in others}, **rest}
    return Packed(tier, has, values, rest)


def num_own(values: Sequence[Any]) -> int:
    """How many of OWN_NUMBERS take room."""
    return len(OWN_NUMBERS) - values[len(FIRST_METRICS) : -len(FLAGS)].count(None)


def unpack(
    tier: str, has: int, values: Sequence[Any], rest: dict[str, Any]
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """(metrics, further keys) of what `pack` made, or of a row of version 1 or 2, whose later metrics are in `rest`."""
    mask = _mask(has)
    metrics = dict(compress(zip(METRIC_NAMES, values, strict=False), mask))
    further: dict[str, Any] = {"tier": tier} if tier else {}
    if has > _HAS_METRICS:
        further.update(compress(zip(FURTHER, values[len(METRIC_NAMES) :], strict=True), mask[len(METRIC_NAMES) :]))
        for name, raw, low, high, bit in _BAR_KEYS:
            if has & bit:
                further[low], further[high] = _ends(metrics.get(name), further.get(raw))
        for name in FLAGS:
            if further.get(name) is not None:
                further[name] = bool(further[name])
    if rest:
        for name in LATER_METRICS:
            if name in rest and isinstance(rest[name], float | None):
                metrics[name] = rest.pop(name)
        further.update(rest)
    return metrics, further


def _pop_bars(metrics: Mapping[str, float | None], rest: dict[str, Any]) -> int:
    """Take those bars out of `rest` that follow from the columns. Returns their bits."""
    has = 0
    for name, raw, low, high, bit in _BAR_KEYS:
        if low not in rest:
            continue
        ends, bar = (metrics.get(name), rest.get(raw)), (rest[low], rest.get(high))
        if {*map(type, ends), *map(type, bar)} == {float} and bar == _ends(*ends):
            has |= bit
            del rest[low], rest[high]
    return has


def _ends(value: float | None, raw: float | None) -> tuple[float | None, float | None]:
    """Without both only where the file is damaged."""
    return (None, None) if value is None or raw is None else (min(value, raw), max(value, raw))


@lru_cache(maxsize=4096)
def _known(metrics: tuple[str, ...]) -> tuple[int, tuple[str, ...]]:
    """The bits of those that have columns, and the others in order."""
    return sum(bit for name, bit in _METRICS.items() if name in metrics), tuple(sorted({*metrics} - {*METRIC_NAMES}))


@lru_cache(maxsize=4096)
def _mask(has: int) -> tuple[bool, ...]:
    return tuple(bool(has & bit) for bit in _COLUMNS.values())
