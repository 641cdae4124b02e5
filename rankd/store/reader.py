"""The history as others read it: from any process, while a daemon writes it and when none does."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rankd.records import Measurement
from rankd.store import looks, measured
from rankd.store.errors import FAILURES, StoreError
from rankd.store.looks import Floats, Heatmap, Ints
from rankd.store.measured import SLICE
from rankd.store.opening import open_to_read, said_of
from rankd.store.rows import (
    INT,
    TEXT,
    LayerRow,
    RowType,
    RunRow,
    alert_of,
    damaged,
    number_of,
    numbers_of,
    stream_id_of,
)
from rankd.store.schema import FILE_NAME

T = TypeVar("T")

RUNS = """
SELECT name, (SELECT count(*) FROM layer WHERE layer.run_id = run.run_id), num_measurements, num_alerts,
    (SELECT count(*) FROM firing WHERE firing.run_id = run.run_id), first_time, last_time, last_step
FROM run
"""

NUMBERS = {"measurement": "num_measurements", "alert": "num_alerts"}
"""kind of event → the column of `run` that counts them; the tables are called like the kinds."""

_FIRING = RowType(TEXT, INT, TEXT)

FORGOTTEN_STREAM = "0" * 16
"""Where an alert was told in a stream that the history no longer knows."""


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
        return self.read(RunRow.of, f"{RUNS} ORDER BY last_time, run_id")

    def run(self, name: str) -> RunRow | None:
        return next(iter(self.read(RunRow.of, f"{RUNS} WHERE name = ?", name)), None)

    def layers(self, run: str) -> list[LayerRow]:
        """The layers of a run, by name and role."""
        columns = "l.name, l.role, l.last_step, l.last_time, l.num_measurements, l.num_superseded"
        sql = f"SELECT {columns} FROM layer l JOIN run r USING (run_id) WHERE r.name = ? ORDER BY l.name, l.role"
        return self.read(LayerRow.of, sql, run)

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
        return measured.measurements(self, run, layers, role, (from_step, to_step), from_n, limit, current)

    def metrics(self, run: str) -> list[str]:
        """What may be asked of the run's measurements: the metrics, and the further keys of each layer's newest row."""
        return measured.metrics(self, run)

    def judge(self, run: str, layer: str, role: str) -> tuple[bytes | None, list[Measurement]]:
        """The layer's detectors as they were recorded last (None: never), and its measurements since; of one moment."""
        return measured.judge(self, run, layer, role)

    # Alerts

    def alerts(self, run: str, from_n: int = 1, limit: int | None = None) -> Iterator[tuple[int, dict[str, Any]]]:
        """(n, alert as JSON without stream_id and seq) in order of n, up to what is recorded when this begins."""
        known = self.find("alert", run)
        if known is None:
            return
        run_id, last_n = known
        start = from_n
        while start <= last_n and (limit is None or limit > 0):
            size = SLICE if limit is None else min(SLICE, limit)
            sql = "SELECT n, body FROM alert WHERE run_id = ? AND n BETWEEN ? AND ? ORDER BY n LIMIT ?"
            rows = self.read(lambda row: (row[0], alert_of(run, row[1])), sql, run_id, start, last_n, size)
            yield from rows
            if len(rows) < size:
                return
            start = rows[-1][0] + 1
            limit = None if limit is None else limit - size

    def published_alerts(self, run: str) -> Iterator[dict[str, Any]]:
        """All alerts of a run, with the stream_id and seq that they were published with."""
        place = self.places("alert", run)
        for n, alert in self.alerts(run):
            stream_id, seq = place(n)
            time = alert.pop("time")  # the last key, as in Alert.to_json
            yield {**alert, "stream_id": stream_id, "seq": seq, "time": time}

    def firing(self, run: str | None = None) -> list[tuple[str, int, dict[str, Any]]]:
        """(run, n, alert) of the alerts that are on, of one run or of all, in the order in which they were raised; also
        those whose event is no longer in the history."""
        sql = """
            SELECT r.name, f.n, coalesce(f.body, a.body) FROM firing f JOIN run r USING (run_id)
            LEFT JOIN alert a ON a.run_id = f.run_id AND a.n = f.n
            WHERE (f.body IS NOT NULL OR a.body IS NOT NULL) AND (? IS NULL OR r.name = ?) ORDER BY f.run_id, f.n
        """
        found = self.read(lambda row: (*_FIRING.check(row)[:2], alert_of(row[0], row[2])), sql, run, run)
        return sorted(found, key=lambda row: row[2]["time"])

    # Numbers on the stream

    @property
    def stream_id(self) -> str:
        """Of the stream in use."""
        found = self.read(stream_id_of, "SELECT value FROM meta WHERE key = 'stream_id'")
        return found[0] if found else ""

    def streams(self) -> list[str]:
        """The ids of all streams, newest first."""
        return self.read(stream_id_of, "SELECT stream_id FROM stream ORDER BY position DESC")

    def base(self, stream_id: str, kind: str, run: str) -> int | None:
        """The n after which the stream of these events begins: seq = n − base. None: no such stream."""
        if not self.rows("SELECT 1 FROM stream WHERE stream_id = ?", stream_id):
            return None
        sql = "SELECT base FROM base JOIN run USING (run_id) WHERE stream_id = ? AND kind = ? AND name = ?"
        found = self.read(number_of, sql, stream_id, kind, run)
        return found[0] if found else 0

    def end(self, stream_id: str, kind: str, run: str) -> int | None:
        """The n of the last event of the stream, where the next stream begins. None: it goes on, or there is none."""
        sql = """
            SELECT stream_id FROM stream WHERE position > (SELECT position FROM stream WHERE stream_id = ?)
            ORDER BY position LIMIT 1
        """
        found = self.read(stream_id_of, sql, stream_id)
        return self.base(found[0], kind, run) if found else None

    def places(self, kind: str, run: str) -> Callable[[int], tuple[str, int]]:
        """n → (stream_id, seq) that the event was published with: of the streams that had begun by then, the newest.
        Where that one is forgotten: FORGOTTEN_STREAM, and n itself."""
        begun = [(self.base(stream_id, kind, run) or 0, stream_id) for stream_id in self.streams()]

        def place(n: int) -> tuple[str, int]:
            base, stream_id = next(((base, stream_id) for base, stream_id in begun if base < n), (0, FORGOTTEN_STREAM))
            return stream_id, n - base

        return place

    def first_n(self, kind: str, run: str) -> int:
        """The oldest n of these events ("measurement" or "alert") that is still there; the next one if none is."""
        known = self.find(kind, run)
        if known is None:
            return 1
        found = self.read(number_of, f"SELECT n FROM {kind} WHERE run_id = ? ORDER BY n LIMIT 1", known[0])
        return found[0] if found else known[1] + 1

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
    ) -> Iterator[tuple[int, int | None, bytes, str]]:
        """(n, step, Measurement.summary, its tier) of those that have a summary, in order of n."""
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

    def numbers(self, columns: np.dtype[np.void], sql: str, *values: object) -> npt.NDArray[np.void]:
        """The rows of a statement without nulls and texts as a structured array [rows] of these columns: faster than
        rows, and whole numbers stay whole."""
        try:
            return np.fromiter(self._connection.execute(sql, values), columns)
        except FAILURES as error:
            raise said_of(self.file, error) from None
        except (ValueError, TypeError, OverflowError) as error:
            raise said_of(self.file, damaged(error, "numbers alone")) from None

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """All rows of one statement, read at once; their values may be anything where the file is damaged."""
        try:
            return self._connection.execute(sql, values).fetchall()
        except FAILURES as error:
            raise said_of(self.file, error) from None

    def read(self, make: Callable[[tuple[Any, ...]], T], sql: str, *values: object) -> list[T]:
        """What `make` makes of all rows of one statement; where it finds one damaged, the file is named."""
        rows = self.rows(sql, *values)
        try:
            return list(map(make, rows))
        except StoreError as error:
            raise said_of(self.file, error) from None

    def find(self, kind: str, run: str) -> tuple[int, int] | None:
        """(run_id, the newest n of these events) of a run."""
        found = self.read(numbers_of, f"SELECT run_id, {NUMBERS[kind]} FROM run WHERE name = ?", run)
        return found[0] if found else None

    def layer_id(self, run: str, layer: str, role: str) -> int | None:
        sql = "SELECT layer_id FROM layer JOIN run USING (run_id) WHERE run.name = ? AND layer.name = ? AND role = ?"
        found = self.read(number_of, sql, run, layer, role)
        return found[0] if found else None
