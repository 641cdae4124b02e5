"""Deletes rows of the history: each call is one transaction of at most SLICE_ROWS rows of a kind."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from itertools import starmap
from math import ceil

from rankd.store.columns import OWN_NUMBERS
from rankd.store.folding import fold
from rankd.store.ids import LAST_LAYER
from rankd.store.size import alert_bytes, kind_bytes, measurement_bytes

SLICE_ROWS = 2_000
"""Measurements deleted in one transaction, some 20 ms: commits wait for it."""

SLICE_LAYERS = 64
"""What the detectors remember of each can be 120 kB."""

MAX_N = (1 << 63) - 1

_NUM_OWN = " + ".join(f"(m.{name} IS NOT NULL)" for name in OWN_NUMBERS)
_SIZES = f"""
SELECT {_NUM_OWN}, coalesce(length(m.extra), 0), coalesce(length(s.summary), 0)
FROM measurement m LEFT JOIN spectrum s ON s.layer_id = m.layer_id AND s.n = m.n WHERE m.run_id = ? AND m.n <= ?
"""
_KIND_SIZES = """
SELECT length(shape) + length(method) + length(source_dtype) + length(wire_dtype) + length(tier) FROM kind
WHERE run_id = ? AND last_n < ?
"""
_ALERT_SIZES = """
SELECT length(CAST(coalesce(layer, '') AS BLOB)), length(CAST(body AS BLOB)) FROM alert WHERE run_id = ? AND n <= ?
"""
_KEEP_FIRING = """
UPDATE firing SET body = a.body FROM alert a
WHERE a.run_id = ? AND a.n <= ? AND firing.alert_id = a.alert_id AND firing.run_id = a.run_id AND firing.n = a.n
"""
# What was guessed of rows of version 1 is put right when there are none left.
_FREED = """
UPDATE run SET {0}_bytes = max(0, {0}_bytes - :bytes) * EXISTS (SELECT 1 FROM {0} WHERE run_id = :run_id)
WHERE run_id = :run_id
"""


class Removal:
    """What a run has of a kind goes from its oldest number on, so that what is left has no holes."""

    def __init__(self, connection: sqlite3.Connection, clock: Callable[[], float]) -> None:
        self._connection = connection
        self._clock = clock

    def oldest(self, table: str, run_id: int, num_rows: int | None = None) -> int:
        """The number up to which a slice of the run's measurements or alerts reaches; 0 where there is none."""
        query = f"SELECT max(n) FROM (SELECT n FROM {table} WHERE run_id = ? ORDER BY n LIMIT ?)"
        return self._connection.execute(query, (run_id, num_rows or SLICE_ROWS)).fetchone()[0] or 0

    def slice_of(self, table: str, run_id: int, share: float) -> int:
        """As `oldest`, of about this share of the run's rows at most."""
        first, last = (f"(SELECT n FROM {table} WHERE run_id = :id ORDER BY n {way} LIMIT 1)" for way in ("", "DESC"))
        num_rows = self._connection.execute(f"SELECT {last} - {first} + 1", {"id": run_id}).fetchone()[0] or 1
        return self.oldest(table, run_id, max(1, min(SLICE_ROWS, ceil(share * num_rows))))

    def measurements(self, run_id: int, upto: int) -> None:
        """Those up to number `upto`, or fewer, with their spectra and with kinds that no others are of; and what is
        said of the run's first time is brought up to date, unless a clock that was ahead had set it."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        upto = fold(self._connection, run_id, upto)
        freed_bytes = sum(starmap(measurement_bytes, execute(_SIZES, (run_id, upto))))
        slice_of_run = "FROM measurement WHERE run_id = ? AND n <= ?"
        execute(f"DELETE FROM spectrum WHERE (layer_id, n) IN (SELECT layer_id, n {slice_of_run})", (run_id, upto))
        execute(f"DELETE {slice_of_run}", (run_id, upto))
        query = "SELECT n, time FROM measurement WHERE run_id = ? ORDER BY n LIMIT 1"
        oldest_n, oldest_time = execute(query, (run_id,)).fetchone() or (MAX_N, None)
        freed_bytes += sum(kind_bytes(length) for (length,) in execute(_KIND_SIZES, (run_id, oldest_n)))
        execute("DELETE FROM kind WHERE run_id = ? AND last_n < ?", (run_id, oldest_n))
        execute(_FREED.format("measurement"), {"run_id": run_id, "bytes": freed_bytes})
        first_time = "coalesce(:time, last_time)"
        query = f"UPDATE run SET first_time = {first_time} WHERE run_id = :run_id AND {first_time} <= :now"
        execute(query, {"time": oldest_time, "run_id": run_id, "now": self._clock()})
        execute("COMMIT")

    def alerts(self, run_id: int, upto: int) -> None:
        """Those up to number `upto`. What is on stays on."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        freed_bytes = sum(starmap(alert_bytes, execute(_ALERT_SIZES, (run_id, upto))))
        execute(_KEEP_FIRING, (run_id, upto))
        execute("DELETE FROM alert WHERE run_id = ? AND n <= ?", (run_id, upto))
        execute(_FREED.format("alert"), {"run_id": run_id, "bytes": freed_bytes})
        execute("COMMIT")

    def purge(self, run_id: int) -> None:
        """A slice of all else of a run that has no measurements; in the end there are its name and its numbers. What
        can be missed goes first. What the detectors remember goes at once, in that its layers are no longer the run's:
        a run that comes back meanwhile finds all of it or nothing."""
        execute = self._connection.execute
        if upto := self.oldest("alert", run_id):
            self.alerts(run_id, upto)
            return
        execute("BEGIN IMMEDIATE")
        bins = "SELECT layer_id, bin FROM rollup WHERE run_id = ? LIMIT ?"
        query = f"DELETE FROM rollup WHERE run_id = ? AND (layer_id, bin) IN ({bins})"
        if not execute(query, (run_id, run_id, SLICE_ROWS)).rowcount:
            execute("UPDATE layer SET run_id = -run_id WHERE run_id = ?", (run_id,))
            for table in ("firing", "kind"):
                execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
            execute(
                "UPDATE run SET first_time = NULL, last_time = NULL, last_step = NULL, bin_steps = 1, "
                "rolled_n = num_measurements, measurement_bytes = 0, alert_bytes = 0 WHERE run_id = ?",
                (run_id,),
            )
        execute("COMMIT")

    def purged_layers(self) -> bool:
        """A slice of the layers that runs had before they were purged. Whether there was one."""
        execute = self._connection.execute
        rows = execute("SELECT layer_id FROM layer WHERE run_id < 0 LIMIT ?", (SLICE_LAYERS,)).fetchall()
        if rows:
            execute("BEGIN IMMEDIATE")
            execute(f"INSERT OR REPLACE INTO meta VALUES ('layer_id', ({LAST_LAYER}))")
            for table in ("judge", "layer"):
                self._connection.executemany(f"DELETE FROM {table} WHERE layer_id = ?", rows)
            execute("COMMIT")
        return bool(rows)
