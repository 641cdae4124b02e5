"""Entries → the rows of one transaction."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rankd.records import Alert, Measurement
from rankd.store.columns import COLUMNS, num_own, pack
from rankd.store.database import set_stream
from rankd.store.entries import AlertEntry, Entry
from rankd.store.ids import Ids, Kind, RunNumbers
from rankd.store.size import alert_bytes, measurement_bytes

MEASUREMENT = (
    "measurement (layer_id, n, run_id, step, time, kind_id, finite, zero, measure_seconds, extra, "
    f"{', '.join(COLUMNS)})"
)

ROWS_AT_ONCE = 64
"""Rows of one INSERT: each gives up the interpreter's lock and has to win it back from threads that compute."""

KEPT_STREAMS = 100
"""The newest, which a daemon tells of: each that a subscriber did not hear of costs it a query for every topic, and the
file a row for every run."""

LayerKey = tuple[str, str, str]
"""(run, layer, role)."""


@dataclass(slots=True)
class _Seen:
    """What a batch adds to a row of `run` or `layer`."""

    first_time: float
    last_time: float
    last_step: int | None = None
    num: int = 0
    measurement_bytes: int = 0
    alert_bytes: int = 0

    def of_run(self) -> tuple[float | int | None, ...]:
        return self.first_time, self.last_time, self.last_step, self.measurement_bytes, self.alert_bytes


@dataclass(slots=True)
class Batch:
    """Collects rows; `write` puts them into the transaction that the caller has begun. `now` stands where a measurement
    has no time."""

    ids: Ids
    now: float
    _measurements: list[tuple[Any, ...]] = field(default_factory=list)
    _spectra: list[tuple[int, int, bytes]] = field(default_factory=list)
    _alerts: list[tuple[Any, ...]] = field(default_factory=list)
    _firing: dict[str, tuple[int, int] | None] = field(default_factory=dict)
    _judges: dict[int, tuple[int, bytes]] = field(default_factory=dict)
    _runs: dict[str, _Seen] = field(default_factory=dict)
    _layers: dict[int, _Seen] = field(default_factory=dict)

    def add(self, entry: Entry | AlertEntry) -> None:
        """Take an entry, unless the file has it: the outcome of the commit before may have been unknown."""
        if isinstance(entry, AlertEntry):
            run = self.ids.run(entry.alert.run)
            if entry.n > run.num_alerts:
                self._add_alert(run, entry.n, entry.alert)
            return
        run = self.ids.run(entry.measurement.run)
        if entry.n <= run.num_measurements:
            return
        run.num_measurements = entry.n
        layer_id = self._add_measurement(run, entry.n, entry.measurement)
        for n, alert in entry.alerts:
            self._add_alert(run, n, alert)
        if entry.judge is not None:
            self._judges[layer_id] = (entry.n, entry.judge)

    def write(self, connection: sqlite3.Connection) -> int:
        """Returns the number of measurements written."""
        _insert(connection, MEASUREMENT, self._measurements)
        _insert(connection, "spectrum", self._spectra)
        _insert(connection, "alert", self._alerts)
        ended = [(alert_id,) for alert_id, raised in self._firing.items() if raised is None]
        connection.executemany("DELETE FROM firing WHERE alert_id = ?", ended)
        raised = [(alert_id, *raised) for alert_id, raised in self._firing.items() if raised is not None]
        connection.executemany("INSERT OR REPLACE INTO firing (alert_id, run_id, n) VALUES (?, ?, ?)", raised)
        judges = [(layer_id, *judge) for layer_id, judge in self._judges.items()]
        connection.executemany("INSERT OR REPLACE INTO judge VALUES (?, ?, ?)", judges)
        connection.executemany(
            "UPDATE layer SET last_step = ?, last_time = ?, num_measurements = num_measurements + ? WHERE layer_id = ?",
            [(seen.last_step, seen.last_time, seen.num, layer_id) for layer_id, seen in self._layers.items()],
        )
        runs = [(seen, self.ids.run(name)) for name, seen in self._runs.items()]
        connection.executemany(
            "UPDATE run SET first_time = min(coalesce(first_time, ?1), ?1), last_time = ?2, "
            "last_step = coalesce(?3, last_step), measurement_bytes = measurement_bytes + ?4, "
            "alert_bytes = alert_bytes + ?5, num_measurements = ?6, num_alerts = ?7 WHERE run_id = ?8",
            [(*seen.of_run(), run.num_measurements, run.num_alerts, run.run_id) for seen, run in runs],
        )
        return len(self._measurements)

    def _add_measurement(self, run: RunNumbers, n: int, measurement: Measurement) -> int:
        of = measurement
        time = self.now if of.time is None else of.time
        layer_id = self.ids.layer(run.run_id, of.layer, of.role)
        tier, has, values, rest = pack(of)
        kind = Kind(of.shape, of.method, of.source_dtype, of.wire_dtype, tier, has)
        kind_id, num_bytes = self.ids.kind(run.run_id, n, kind)
        text = json.dumps(rest, separators=(",", ":")) if rest else None
        self._measurements.append(
            (layer_id, n, run.run_id, of.step, time, kind_id, of.finite, of.zero, of.measure_seconds, text, *values)
        )
        num_bytes += measurement_bytes(num_own(values), 0 if text is None else len(text), len(of.summary))
        if of.summary:
            self._spectra.append((layer_id, n, of.summary))
        for seen in (
            self._runs.setdefault(of.run, _Seen(time, time)),
            self._layers.setdefault(layer_id, _Seen(time, time)),
        ):
            seen.first_time = min(seen.first_time, time)
            seen.last_time, seen.last_step, seen.num = time, of.step, seen.num + 1
            seen.measurement_bytes += num_bytes
        return layer_id

    def _add_alert(self, run: RunNumbers, n: int, alert: Alert) -> None:
        run.num_alerts = n
        body = alert.to_json()
        del body["stream_id"], body["seq"]
        text = json.dumps(body, separators=(",", ":"), ensure_ascii=False)
        about = (alert.layer, alert.step, alert.rule, alert.state, alert.severity, alert.time)
        self._alerts.append((run.run_id, n, alert.alert_id, *about, text))
        self._firing[alert.alert_id] = (run.run_id, n) if alert.state == "firing" else None
        seen = self._runs.setdefault(alert.run, _Seen(alert.time, alert.time))
        seen.last_time = alert.time
        seen.alert_bytes += alert_bytes(len((alert.layer or "").encode()), len(text.encode()))


def add_superseded(connection: sqlite3.Connection, ids: Ids, counts: Mapping[LayerKey, int]) -> None:
    """Count snapshots that gave way to others; within the caller's transaction."""
    connection.executemany(
        "UPDATE layer SET num_superseded = num_superseded + ? WHERE layer_id = ?",
        [(num, ids.layer(ids.run(run).run_id, layer, role)) for (run, layer, role), num in counts.items()],
    )


def add_stream(connection: sqlite3.Connection, ids: Ids, stream_id: str, bases: Mapping[tuple[str, str], int]) -> None:
    """Begin a stream, whose numbers are n − base, base by (kind, run), and forget all but KEPT_STREAMS; within the
    caller's transaction, of which the entries were written. A run never has fewer numbers than its base, though the
    rows up to there were lost with an earlier file, or given up."""
    set_stream(connection, stream_id)
    for (kind, run), base in bases.items():
        numbers = ids.run(run)
        column = "num_measurements" if kind == "measurement" else "num_alerts"
        if getattr(numbers, column) < base:
            setattr(numbers, column, base)
            connection.execute(f"UPDATE run SET {column} = ? WHERE run_id = ?", (base, numbers.run_id))
    connection.executemany(
        "INSERT OR REPLACE INTO base VALUES (?, ?, ?, ?)",
        [(stream_id, ids.run(run).run_id, kind, base) for (kind, run), base in bases.items() if base],
    )
    old = "SELECT stream_id FROM stream WHERE position <= (SELECT max(position) FROM stream) - ?"
    for table in ("base", "stream"):
        connection.execute(f"DELETE FROM {table} WHERE stream_id IN ({old})", (KEPT_STREAMS,))


def _insert(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if not rows:
        return
    row = f"({', '.join('?' * len(rows[0]))})"
    whole = len(rows) - len(rows) % ROWS_AT_ONCE
    many = f"INSERT INTO {table} VALUES {', '.join([row] * ROWS_AT_ONCE)}"
    connection.executemany(many, (_flat(rows[at : at + ROWS_AT_ONCE]) for at in range(0, whole, ROWS_AT_ONCE)))
    connection.executemany(f"INSERT INTO {table} VALUES {row}", rows[whole:])


def _flat(rows: Iterable[tuple[Any, ...]]) -> list[Any]:
    return [value for row in rows for value in row]
