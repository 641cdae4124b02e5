"""The rows of the history as Python has them, each value looked at: SQLite notices a page that is out of order, but no
byte that is another than the one that was written."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from types import NoneType
from typing import Any

from rankd.records import Measurement
from rankd.store.columns import COLUMNS, FLAGS, HAS_ALL, unpack
from rankd.store.errors import StoreError

MAX_NUMBER = 1 << 62
"""More events than there ever are: sums of two numbers stay within SQLite's 64 bits."""

INT, TEXT, REAL, BLOB = (int,), (str,), (float,), (bytes,)
MAYBE_INT, MAYBE_TEXT, MAYBE_REAL = (int, NoneType), (str, NoneType), (float, NoneType)


class RowType:
    """Of which types the values of a row are."""

    def __init__(self, *columns: tuple[type, ...]) -> None:
        self._columns = columns
        self._good: set[tuple[type, ...]] = set()

    def check(self, row: tuple[Any, ...]) -> tuple[Any, ...]:
        """The same row. StoreError (damaged) where a value is of another type."""
        types = tuple(map(type, row))
        if types not in self._good:
            for value, columns in zip(row, self._columns, strict=True):
                if type(value) not in columns:
                    raise damaged(value, " or ".join(column.__name__ for column in columns))
            self._good.add(types)
        return row


def damaged(value: object, expected: str) -> StoreError:
    shown = repr(value)
    shown = shown if len(shown) <= 100 else shown[:100] + "…"
    return StoreError("damaged", f"the file is damaged: it holds {shown}; expected {expected}")


MEASUREMENT_COLUMNS = (
    "m.n, l.name, l.role, m.step, m.time, k.shape, k.method, k.source_dtype, k.wire_dtype, k.tier, k.has, m.finite, "
    f"m.zero, m.measure_seconds, m.extra, {', '.join(f'm.{name}' for name in COLUMNS)}"
)
"""What `measurement_of` takes: measurement m, layer l, kind k."""

MEASUREMENTS = f"""
SELECT {MEASUREMENT_COLUMNS} FROM measurement m
CROSS JOIN layer l ON l.layer_id = m.layer_id CROSS JOIN kind k ON k.kind_id = m.kind_id
"""  # CROSS JOIN: in this order

MEASUREMENTS_SINCE = f"{MEASUREMENTS} WHERE m.layer_id = ? AND m.n > ? ORDER BY m.n"

_MEASUREMENT = RowType(
    *(INT, TEXT, TEXT, MAYBE_INT, MAYBE_REAL, TEXT, TEXT, TEXT, TEXT, TEXT, INT, INT, INT, REAL, MAYBE_TEXT),
    *[MAYBE_REAL] * (len(COLUMNS) - len(FLAGS)),
    *[MAYBE_INT] * len(FLAGS),
)
_RUN = RowType(TEXT, INT, INT, INT, INT, MAYBE_REAL, MAYBE_REAL, MAYBE_INT)
_LAYER = RowType(TEXT, TEXT, MAYBE_INT, MAYBE_REAL, INT, INT)

_STREAM_ID = re.compile("[0-9a-f]{16}")

_NUMBER = (int, float)
_ALERT: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("alert_id", "run", "severity", "state", "rule", "message", "advice"), TEXT),
    **dict.fromkeys(("layer", "metric"), MAYBE_TEXT),
    "step": MAYBE_INT,
    **dict.fromkeys(("value", "baseline"), (*_NUMBER, NoneType)),
    "time": _NUMBER,
}
"""What stands in the body of every alert."""


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

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> RunRow:
        """StoreError (damaged) for values that no run has."""
        made = cls(*_RUN.check(row))
        _number(made.num_measurements), _number(made.num_alerts)
        return made


@dataclass(frozen=True, slots=True)
class LayerRow:
    """How new what is known of a layer is, and how often a snapshot of it gave way to a newer one unmeasured."""

    name: str
    role: str
    last_step: int | None
    last_time: float | None
    num_measurements: int
    num_superseded: int

    @classmethod
    def of(cls, row: tuple[Any, ...]) -> LayerRow:
        """StoreError (damaged) for values that no layer has."""
        return cls(*_LAYER.check(row))


def number_of(row: tuple[Any, ...]) -> int:
    """Of an event or a row, alone in its row. StoreError (damaged) for anything else."""
    return _number(row[0])


def numbers_of(row: tuple[Any, ...]) -> tuple[int, int]:
    """Two of them."""
    return _number(row[0]), _number(row[1])


def stream_id_of(row: tuple[Any, ...]) -> str:
    """Alone in its row: 16 hexadecimal digits. StoreError (damaged) for anything else."""
    if type(row[0]) is str and _STREAM_ID.fullmatch(row[0]):
        return row[0]
    raise damaged(row[0], "the id of a stream")


def measurement_of(run: str, row: tuple[Any, ...]) -> tuple[int, Measurement]:
    """A row of MEASUREMENT_COLUMNS as (n, measurement), without its spectrum's summary. StoreError (damaged) for values
    that no measurement has."""
    n, layer, role, step, time, shape, method, source_dtype, wire_dtype, tier, has, *more = _MEASUREMENT.check(row)
    finite, zero, seconds, extra, *values = more
    if step is not None and step < 0:
        raise damaged(step, "a step of 0 or more")
    if has & ~HAS_ALL:
        raise damaged(has, "which columns a measurement has")
    if math.inf in values or -math.inf in values:  # what overflowed, or a damaged number
        values = [None if value is None or math.isinf(value) else value for value in values]
    metrics, further = unpack(tier, has, values, json_object(extra) if extra else {})
    return n, Measurement(
        run=run,
        layer=layer,
        step=step,
        shape=_shape(shape),
        finite=bool(finite),
        zero=bool(zero),
        metrics=metrics,
        role=role,
        method=method,
        source_dtype=source_dtype,
        wire_dtype=wire_dtype,
        measure_seconds=seconds,
        time=time,
        extra=further,
    )


def alert_of(run: str, text: object) -> dict[str, Any]:
    """The body of an alert of `run`. StoreError (damaged) where it is none."""
    alert = json_object(text)
    for key, types in _ALERT.items():
        if type(alert.get(key)) not in types:
            raise damaged(alert.get(key), f"{key} of an alert")
    if alert["run"] != run:
        raise damaged(alert["run"], f"an alert of {run!r}")
    return alert


def json_object(text: object) -> dict[str, Any]:
    """What the text says. StoreError (damaged) where that is nothing we could have written, or could not be told."""
    value = _json(text)
    if type(value) is not dict:
        raise damaged(text, "a JSON object")
    return value


def _number(value: object) -> int:
    if type(value) is int and 0 <= value < MAX_NUMBER:
        return value
    raise damaged(value, "a number of 0 or more")


def _json(text: object) -> Any:
    if type(text) is not str:
        raise damaged(text, "JSON")
    try:
        value = _DECODER.decode(text)
        if "\\u" in text:
            json.dumps(value, ensure_ascii=False).encode()  # half of a pair of surrogates cannot be encoded
    except (ValueError, RecursionError):
        raise damaged(text, "JSON") from None
    return value


def _integer(text: str) -> int:
    value = int(text)
    if -(1 << 63) <= value < 1 << 63:
        return value
    raise ValueError(text)


def _real(text: str) -> float | None:
    """Null for what is not finite, which stands in no JSON of ours."""
    value = float(text)
    return value if math.isfinite(value) else None


_DECODER = json.JSONDecoder(parse_int=_integer, parse_float=_real, parse_constant=_real)


@lru_cache(maxsize=4096)
def _shape(text: str) -> tuple[int, ...]:
    shape = _json(text)
    sizes = type(shape) is list and shape != [] and all(type(size) is int and size >= 0 for size in shape)
    if not sizes or math.prod(shape) >= 1 << 63:
        raise damaged(text, "the sizes of a matrix")
    return tuple(shape)
