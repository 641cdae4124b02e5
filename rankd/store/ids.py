"""Rows that many others point to, looked up once and remembered for as long as the connection lives."""

from __future__ import annotations

import json
import sqlite3
from dataclasses import dataclass
from typing import NamedTuple

from rankd.store.rows import INT, RowType
from rankd.store.size import kind_bytes

MAX_REMEMBERED = 200_000
"""Layers and kinds; runs come and go, and each layer remembered takes about 0.3 kB."""

KIND_AHEAD = 1024
"""Measurements of a run for which a kind that comes again is kept beforehand, so that not each has to say so. A kind
that never comes again is kept for its one measurement."""

_FIND_KIND = """
SELECT kind_id, last_n FROM kind
WHERE run_id = ? AND shape = ? AND method = ? AND source_dtype = ? AND wire_dtype = ? AND tier = ? AND has = ?
"""
_INSERT_KIND = """
INSERT INTO kind (run_id, shape, method, source_dtype, wire_dtype, tier, has, last_n) VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""


class Kind(NamedTuple):
    """What is common to many measurements; `tier` and `has` as in `rankd.store.columns`."""

    shape: tuple[int, ...]
    method: str
    source_dtype: str
    wire_dtype: str
    tier: str
    has: int


@dataclass(slots=True)
class _Known:
    kind_id: int
    last_n: int


@dataclass(slots=True)
class RunNumbers:
    """A run, and the newest number of each kind that the transaction under way knows of."""

    run_id: int
    num_measurements: int
    num_alerts: int


LAST_LAYER = """
SELECT max(coalesce(max(layer_id), 0), (SELECT coalesce(max(value + 0), 0) FROM meta WHERE key = 'layer_id')) FROM layer
"""
"""The highest id that a layer ever had. `meta` keeps it where layers are deleted: who is reading a run that is being
deleted must not find another's rows under the ids it knows."""

_NEW_LAYER = f"INSERT INTO layer (layer_id, run_id, name, role) VALUES (1 + ({LAST_LAYER}), ?, ?, ?)"

_RUN = RowType(INT, INT, INT)
_KIND = RowType(INT, INT)


class Ids:
    """Ids by name; a row is made where there is none yet. To be thrown away with a transaction that failed."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._runs: dict[str, RunNumbers] = {}
        self._layers: dict[tuple[int, str, str], int] = {}
        self._kinds: dict[tuple[int, Kind], _Known] = {}

    def forget(self) -> None:
        """Between transactions: rows may have been deleted, or too many are remembered."""
        self._runs.clear()
        self._layers.clear()
        self._kinds.clear()

    @property
    def too_many(self) -> bool:
        return len(self._runs) + len(self._layers) + len(self._kinds) > MAX_REMEMBERED

    def run(self, name: str) -> RunNumbers:
        found = self._runs.get(name)
        if found is None:
            query = "SELECT run_id, num_measurements, num_alerts FROM run WHERE name = ?"
            row = self._connection.execute(query, (name,)).fetchone()
            if row is None:
                row = (self._insert("INSERT INTO run (name) VALUES (?)", (name,)), 0, 0)
            _RUN.check(row)
            found = self._runs[name] = RunNumbers(*row)
        return found

    def layer(self, run_id: int, name: str, role: str) -> int:
        key = (run_id, name, role)
        found = self._layers.get(key)
        if found is None:
            query = "SELECT layer_id FROM layer WHERE run_id = ? AND name = ? AND role = ?"
            row = self._connection.execute(query, key).fetchone()
            made = row is None and self._insert(_NEW_LAYER, key)
            found = self._layers[key] = made or row[0]
        return found

    def kind(self, run_id: int, n: int, kind: Kind) -> tuple[int, int]:
        """For measurement `n` of the run: the id, and the bytes that a new row took, 0 where there was one."""
        found = self._kinds.get((run_id, kind))
        num_bytes = 0
        if found is None:
            texts = (json.dumps(kind.shape), *kind[1:-1])
            row = self._connection.execute(_FIND_KIND, (run_id, *texts, kind.has)).fetchone()
            if row is None:
                row = self._insert(_INSERT_KIND, (run_id, *texts, kind.has, n)), n
                num_bytes = kind_bytes(sum(map(len, texts)))
            found = self._kinds[run_id, kind] = _Known(*_KIND.check(row))
        if n > found.last_n:
            found.last_n = n + KIND_AHEAD
            self._connection.execute("UPDATE kind SET last_n = ? WHERE kind_id = ?", (found.last_n, found.kind_id))
        return found.kind_id, num_bytes

    def _insert(self, statement: str, values: tuple[object, ...]) -> int:
        row_id = self._connection.execute(statement, values).lastrowid
        assert row_id is not None
        return row_id
