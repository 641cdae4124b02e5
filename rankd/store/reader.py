"""The history as others read it: from any process, while a daemon writes it and when none does."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rankd.records import METRIC_NAMES, Measurement
from rankd.store import looks
from rankd.store.line import Line
from rankd.store.looks import Floats, Heatmap, Ints
from rankd.store.opening import open_to_read, said_of
from rankd.store.rows import MEASUREMENT_COLUMNS, LayerRow, RunRow, measurement_of
from rankd.store.schema import FILE_NAME

SLICE = 2048
"""Numbers of a run that are read at once: no look at the file lasts long, so that its -wal can be folded in between."""

MEASUREMENTS = f"""
SELECT {MEASUREMENT_COLUMNS} FROM measurement m
CROSS JOIN layer l ON l.layer_id = m.layer_id CROSS JOIN kind k ON k.kind_id = m.kind_id
"""  # CROSS JOIN: in this order

RUNS = """
SELECT name, (SELECT count(*) FROM layer WHERE layer.run_id = run.run_id), num_measurements, num_alerts,
    (SELECT count(*) FROM firing WHERE firing.run_id = run.run_id), first_time, last_time, last_step
FROM run
"""

NUMBERS = {"measurement": "num_measurements", "alert": "num_alerts"}
"""kind of event → the column of `run` that counts them; the tables are called like the kinds."""


class Reader:
    """Read-only, and for one thread at a time. Every method raises StoreError where the file cannot be read; a run or
    layer that is not there is None or nothing.

    `n` numbers the measurements of a run, and its alert events, in the order in which they were recorded.
    """

    def __init__(self, data: Path) -> None:
        """`data` is the daemon's data directory."""
        self.file = data / FILE_NAME
        self._connection = open_to_read(data)

    def close(self) -> None:
        self._connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    # Runs and layers

    def runs(self) -> list[RunRow]:
        """All runs, the one heard of last at the end."""
        return [RunRow(*row) for row in self.rows(f"{RUNS} ORDER BY last_time, run_id")]

    def run(self, name: str) -> RunRow | None:
        return next((RunRow(*row) for row in self.rows(f"{RUNS} WHERE name = ?", name)), None)

    def layers(self, run: str) -> list[LayerRow]:
        """The layers of a run, by name and role."""
        columns = "l.name, l.role, l.last_step, l.last_time, l.num_measurements, l.num_superseded"
        rows = self.rows(
            f"SELECT {columns} FROM layer l JOIN run r USING (run_id) WHERE r.name = ? ORDER BY l.name, l.role", run
        )
        return [LayerRow(*row) for row in rows]

    def last_steps(self, run: str) -> dict[tuple[str, str], int]:
        """(layer, role) → the step recorded last."""
        return {(row.name, row.role): row.last_step for row in self.layers(run) if row.last_step is not None}

    # Measurements

    def measurements(
        self,
        run: str,
        *,
        layers: Sequence[str] = (),
        role: str | None = None,
        from_step: int | None = None,
        to_step: int | None = None,
        from_n: int | None = None,
        limit: int | None = None,
        current: bool = False,
    ) -> Iterator[tuple[int, Measurement]]:
        """(n, measurement) in order of n, up to what is recorded when this begins; none comes twice.

        `layers`: globs of `fnmatch.fnmatchcase`, none for all. Steps are inclusive at both ends. `current` leaves out
        what a return to an earlier step made void; see rankd.store.line. Measurements come without `summary`.
        """
        known = self._first("SELECT run_id, num_measurements FROM run WHERE name = ?", run)
        if known is None:
            return
        run_id, last_n = known
        layer_ids = self._layer_ids(run_id, layers, role)
        line = Line.read(self, layer_ids, last_n) if current else None
        where, values = _where(run_id, layer_ids if layers or role else None, from_step, to_step)
        start = max(from_n or 1, self._first_n("measurement", run_id, last_n))
        while start <= last_n and (limit is None or limit > 0):
            stop = min(start + SLICE, last_n + 1)
            for row in self.rows(f"{MEASUREMENTS} {where} ORDER BY m.n", *values, start, stop):
                n, measurement = measurement_of(run, row)
                if line is not None and not line.holds(measurement, n):
                    continue
                yield n, measurement
                if limit is not None:
                    limit -= 1
                    if limit == 0:
                        return
            start = stop

    def metrics(self, run: str) -> list[str]:
        """What may be asked of the run's measurements: the metrics, and the further keys of each layer's newest row."""
        newest = """
            SELECT DISTINCT (SELECT extra FROM measurement m WHERE m.layer_id = l.layer_id ORDER BY n DESC LIMIT 1)
            FROM layer l JOIN run r USING (run_id) WHERE r.name = ?
        """
        further = {key for (extra,) in self.rows(newest, run) if extra for key in json.loads(extra)}
        return [*METRIC_NAMES, *sorted(further)]

    def judge(self, run: str, layer: str, role: str) -> tuple[bytes | None, list[Measurement]]:
        """The layer's detectors as they were recorded last (None: never), and its measurements since; of one moment."""
        layer_id = self.layer_id(run, layer, role)
        with self.one_moment():
            n, state = self._first("SELECT n, state FROM judge WHERE layer_id = ?", layer_id) or (0, None)
            rows = self.rows(f"{MEASUREMENTS} WHERE m.layer_id = ? AND m.n > ? ORDER BY m.n", layer_id, n)
        return state, [measurement_of(run, row)[1] for row in rows]

    # Alerts

    def alerts(self, run: str, from_n: int = 1, limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """(n, alert as JSON without stream_id and seq) in order of n, up to what is recorded when this begins."""
        known = self._first("SELECT run_id, num_alerts FROM run WHERE name = ?", run)
        if known is None:
            return
        run_id, last_n = known
        start = from_n
        while start <= last_n and (limit is None or limit > 0):
            size = SLICE if limit is None else min(SLICE, limit)
            sql = "SELECT n, body FROM alert WHERE run_id = ? AND n BETWEEN ? AND ? ORDER BY n LIMIT ?"
            rows = self.rows(sql, run_id, start, last_n, size)
            for n, body in rows:
                yield n, json.loads(body)
            if len(rows) < size:
                return
            start = rows[-1][0] + 1
            limit = None if limit is None else limit - size

    def published_alerts(self, run: str) -> Iterator[dict[str, Any]]:
        """All alerts of a run, with the stream_id and seq that they were published with."""
        begun = [(self.base(stream_id, "alert", run) or 0, stream_id) for stream_id in self.streams()]
        for n, alert in self.alerts(run):
            # of the streams that had begun by then, the newest
            base, stream_id = next(((base, stream_id) for base, stream_id in begun if base < n), (0, ""))
            time = alert.pop("time")  # the last key, as in Alert.to_json
            yield {**alert, "stream_id": stream_id, "seq": n - base, "time": time}

    def firing(self, run: str | None = None) -> list[tuple[str, int, dict[str, Any]]]:
        """(run, n, alert) of the alerts that are on, of one run or of all, in the order in which they were raised."""
        sql = """
            SELECT r.name, f.n, a.body FROM firing f JOIN run r USING (run_id)
            JOIN alert a ON a.run_id = f.run_id AND a.n = f.n
            WHERE ? IS NULL OR r.name = ? ORDER BY a.time, f.run_id, f.n
        """
        return [(name, n, json.loads(body)) for name, n, body in self.rows(sql, run, run)]

    # Numbers on the stream

    @property
    def stream_id(self) -> str:
        """Of the stream in use."""
        found = self._first("SELECT value FROM meta WHERE key = 'stream_id'")
        return "" if found is None else str(found[0])

    def streams(self) -> list[str]:
        """The ids of all streams, newest first."""
        return [row[0] for row in self.rows("SELECT stream_id FROM stream ORDER BY position DESC")]

    def base(self, stream_id: str, kind: str, run: str) -> int | None:
        """The n after which the stream of these events begins: seq = n − base. None: no such stream."""
        if self._first("SELECT 1 FROM stream WHERE stream_id = ?", stream_id) is None:
            return None
        sql = "SELECT base FROM base JOIN run USING (run_id) WHERE stream_id = ? AND kind = ? AND name = ?"
        found = self._first(sql, stream_id, kind, run)
        return 0 if found is None else int(found[0])

    def end(self, stream_id: str, kind: str, run: str) -> int | None:
        """The n of the last event of the stream, where the next stream begins. None: it goes on, or there is none."""
        sql = """
            SELECT stream_id FROM stream WHERE position > (SELECT position FROM stream WHERE stream_id = ?)
            ORDER BY position LIMIT 1
        """
        found = self._first(sql, stream_id)
        return None if found is None else self.base(found[0], kind, run)

    def first_n(self, kind: str, run: str) -> int:
        """The oldest n of these events ("measurement" or "alert") that is still there; the next one if none is."""
        known = self._first(f"SELECT run_id, {NUMBERS[kind]} FROM run WHERE name = ?", run)
        return 1 if known is None else self._first_n(kind, *known)

    # Wide looks

    def history(self, run: str, layer: str, metric: str, role: str = "weight") -> tuple[Ints, Floats]:
        """(steps int64, values float64), both [points]: the layer's current line, NaN where the metric is null.
        ValueError for an unknown metric."""
        return looks.history(self, run, layer, metric, role)

    def heatmap(self, run: str, metric: str, num_bins: int = 100, role: str = "weight") -> Heatmap:
        """Means of stable_rank, effective_rank or spectral_norm (ValueError for another) over at most `num_bins` bins
        of steps, from every measurement, those of a line that was left too."""
        return looks.heatmap(self, run, metric, num_bins, role)

    def summaries(
        self, run: str, layer: str, role: str = "weight", from_step: int | None = None, to_step: int | None = None
    ) -> Iterator[tuple[int, int | None, bytes]]:
        """(n, step, Measurement.summary) of those that have a summary, in order of n."""
        return looks.summaries(self, run, layer, role, from_step, to_step)

    # What the looks are made with

    @contextmanager
    def one_moment(self) -> Iterator[None]:
        """What is read within is of one moment, whatever is written meanwhile. Not for long."""
        self.rows("BEGIN")
        try:
            yield
        finally:
            self._connection.rollback()

    def numbers(self, num_columns: int, sql: str, *values: object) -> Floats:
        """The rows of a statement without nulls and texts as float64 [rows, num_columns]: a third faster than rows."""
        try:
            flat = np.fromiter(chain.from_iterable(self._connection.execute(sql, values)), np.float64)
        except sqlite3.Error as error:
            raise said_of(self.file, error) from None
        return flat.reshape(-1, num_columns)

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of one statement, read at once."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise said_of(self.file, error) from None

    def layer_id(self, run: str, layer: str, role: str) -> int | None:
        sql = "SELECT layer_id FROM layer JOIN run USING (run_id) WHERE run.name = ? AND layer.name = ? AND role = ?"
        found = self._first(sql, run, layer, role)
        return None if found is None else int(found[0])

    def _first(self, sql: str, *values: object) -> tuple[Any, ...] | None:
        return next(iter(self.rows(sql, *values)), None)

    def _first_n(self, kind: str, run_id: int, last_n: int) -> int:
        found = self._first(f"SELECT n FROM {kind} WHERE run_id = ? ORDER BY n LIMIT 1", run_id)
        return last_n + 1 if found is None else int(found[0])

    def _layer_ids(self, run_id: int, globs: Sequence[str], role: str | None) -> list[int]:
        """Layers like any of the globs (all, without globs), of one role or of all."""
        return [
            layer_id
            for layer_id, name, its_role in self.rows("SELECT layer_id, name, role FROM layer WHERE run_id = ?", run_id)
            if role in (None, its_role) and (not globs or any(fnmatchcase(name, glob) for glob in globs))
        ]


def _where(
    run_id: int, layer_ids: Iterable[int] | None, from_step: int | None, to_step: int | None
) -> tuple[str, list[object]]:
    """The condition on measurements, which ends with n from … (inclusive) to … (exclusive), and its other values."""
    terms, values = ["m.run_id = ?"], list[object]([run_id])
    if layer_ids is not None:
        terms, values = ["m.layer_id IN (SELECT value FROM json_each(?))"], [json.dumps(list(layer_ids))]
    for term, step in (("m.step >= ?", from_step), ("m.step <= ?", to_step)):
        if step is not None:
            terms.append(term)
            values.append(step)
    return f"WHERE {' AND '.join([*terms, 'm.n >= ?', 'm.n < ?'])}", values
