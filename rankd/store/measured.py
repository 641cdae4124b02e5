"""The measurements of a run as they were recorded, and what its detectors remembered of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import TYPE_CHECKING

from rankd.records import METRIC_NAMES, Measurement
from rankd.store.line import Line
from rankd.store.rows import (
    BLOB,
    INT,
    MEASUREMENT_COLUMNS,
    MEASUREMENTS,
    MEASUREMENTS_SINCE,
    TEXT,
    RowType,
    measurement_of,
)

if TYPE_CHECKING:
    from rankd.store.reader import Reader

SLICE = 2048
"""Numbers of a run that are read at once: no look at the file lasts long, so that its -wal can be folded in between."""

_STATE = RowType(INT, BLOB)
_LAYER_NAME = RowType(INT, TEXT, TEXT)


def measurements(
    reader: Reader,
    run: str,
    layers: Sequence[str],
    role: str | None,
    steps: tuple[int | None, int | None],
    from_n: int | None,
    limit: int | None,
    current: bool,
) -> Iterator[tuple[int, Measurement]]:
    """See Reader.measurements."""
    known = reader.find("measurement", run)
    if known is None:
        return
    run_id, last_n = known
    layer_ids = _layer_ids(reader, run_id, layers, role)
    line = Line.read(reader, layer_ids, last_n) if current else None
    where, values = _where(run_id, layer_ids if layers or role else None, *steps)
    start = max(from_n or 1, reader.first_n("measurement", run))
    while start <= last_n and (limit is None or limit > 0):
        stop = min(start + SLICE, last_n + 1)
        sql = f"{MEASUREMENTS} {where} ORDER BY m.n"
        for n, measurement in reader.read(partial(measurement_of, run), sql, *values, start, stop):
            if line is not None and not line.holds(measurement, n):
                continue
            yield n, measurement
            if limit is not None:
                limit -= 1
                if limit == 0:
                    return
        start = stop


def metrics(reader: Reader, run: str) -> list[str]:
    """See Reader.metrics."""
    newest = f"""
        SELECT {MEASUREMENT_COLUMNS} FROM run r CROSS JOIN layer l USING (run_id) CROSS JOIN measurement m
            ON m.layer_id = l.layer_id AND m.n = (SELECT max(n) FROM measurement WHERE layer_id = l.layer_id)
        CROSS JOIN kind k USING (kind_id) WHERE r.name = ?
    """
    found = reader.read(partial(measurement_of, run), newest, run)
    further = {key for _, measurement in found for key in measurement.extra}
    return [*METRIC_NAMES, *sorted(further)]


def judge(reader: Reader, run: str, layer: str, role: str) -> tuple[bytes | None, list[Measurement]]:
    """See Reader.judge."""
    with reader.one_moment():
        layer_id = reader.layer_id(run, layer, role)
        states = reader.read(_STATE.check, "SELECT n, state FROM judge WHERE layer_id = ?", layer_id)
        n, state = states[0] if states else (0, None)
        since = reader.read(partial(measurement_of, run), MEASUREMENTS_SINCE, layer_id, n)
    return state, [measurement for _, measurement in since]


def _layer_ids(reader: Reader, run_id: int, globs: Sequence[str], role: str | None) -> list[int]:
    """Layers like any of the globs (all, without globs), of one role or of all."""
    sql = "SELECT layer_id, name, role FROM layer WHERE run_id = ?"
    return [
        layer_id
        for layer_id, name, its_role in reader.read(_LAYER_NAME.check, sql, run_id)
        if role in (None, its_role) and (not globs or any(fnmatchcase(name, glob) for glob in globs))
    ]


def _where(
    run_id: int, layer_ids: Iterable[int] | None, from_step: int | None, to_step: int | None
) -> tuple[str, list[object]]:
    """The condition on measurements, which ends with n from … (inclusive) to … (exclusive), and its other values."""
    terms, values = ["m.run_id = ?"], list[object]([run_id])
    if layer_ids is not None:  # found by layer, hence no index for the run
        terms = ["m.layer_id IN (SELECT value FROM json_each(?))", "+m.run_id = ?"]
        values = [json.dumps(list(layer_ids)), run_id]
    for term, step in (("m.step >= ?", from_step), ("m.step <= ?", to_step)):
        if step is not None:
            terms.append(term)
            values.append(step)
    return f"WHERE {' AND '.join([*terms, 'm.n >= ?', 'm.n < ?'])}", values
