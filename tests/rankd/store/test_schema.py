"""A history that an older rankd wrote."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.retention import ClockTrust, Retention
from rankd.store.schema import FILE_NAME, VERSION

Look = Callable[..., list[Any]]
Open = Callable[..., Any]

BACK_TO_1 = """
PRAGMA legacy_alter_table = ON;  -- else `layer` would refer to run_of_2
BEGIN;
ALTER TABLE run RENAME TO run_of_2;
CREATE TABLE run (
    run_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    first_time REAL, last_time REAL, last_step INTEGER,
    num_measurements INTEGER NOT NULL DEFAULT 0,
    num_alerts INTEGER NOT NULL DEFAULT 0,
    bin_steps INTEGER NOT NULL DEFAULT 1,   -- width of a bin of the roll-up, a power of two
    rolled_n INTEGER NOT NULL DEFAULT 0     -- the roll-up holds the measurements up to this n
);
INSERT INTO run SELECT run_id, name, first_time, last_time, last_step, num_measurements, num_alerts, bin_steps, rolled_n
    FROM run_of_2;
DROP TABLE run_of_2;
ALTER TABLE firing DROP COLUMN body;
DROP INDEX kind_by_age;
ALTER TABLE kind RENAME TO kind_of_2;
CREATE TABLE kind (
    kind_id INTEGER PRIMARY KEY,
    shape TEXT NOT NULL, method TEXT NOT NULL, source_dtype TEXT NOT NULL, wire_dtype TEXT NOT NULL,
    UNIQUE (shape, method, source_dtype, wire_dtype)
);
INSERT INTO kind SELECT kind_id, shape, method, source_dtype, wire_dtype FROM kind_of_2;
DROP TABLE kind_of_2;
PRAGMA user_version = 1;
COMMIT;
"""


@pytest.fixture
def version_1(make: Any, open_writer: Open, data: Path) -> Path:
    """Five measurements, an alert that is on."""
    writer = open_writer()
    first, *others = make.entries(5)
    writer.write(Entry(1, first.measurement, ((1, make.alert()),), b"state"), *others)
    assert writer.close(30)
    connection = sqlite3.connect(data / FILE_NAME, isolation_level=None)
    connection.executescript(BACK_TO_1)
    connection.close()
    return data


def tables(look: Look) -> list[Any]:
    """Columns and indexes of each table."""
    columns = "m.name, t.name, t.type, t.[notnull], t.dflt_value, t.pk"
    found = look(f"SELECT {columns} FROM sqlite_master m, pragma_table_info(m.name) t ORDER BY 1, 2")
    return found + look("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index' ORDER BY 1")


def test_version_1_becomes_todays(make: Any, version_1: Path, open_writer: Open, look: Look, tmp_path: Path) -> None:
    writer = open_writer()
    assert look("PRAGMA user_version") == [(VERSION,)]
    assert look("SELECT measurement_bytes > 500, alert_bytes > 500 FROM run") == [(1, 1)]
    with Reader(version_1) as reader:
        assert len(list(reader.measurements("r"))) == 5
        assert [n for _, n, _ in reader.firing()] == [1]
    writer.write(*make.entries(5, first=6))
    assert look("SELECT run_id, count(*) FROM kind GROUP BY run_id ORDER BY 1") == [(0, 1), (1, 1)]
    with Reader(version_1) as reader:
        assert [n for n, _ in reader.measurements("r")] == list(range(1, 11))
    quotas = {"": 1}
    connection = writer._home.ledger._connection
    work = Retention(connection, HistoryConfig(), ClockTrust(0.0, 0.0), lambda: 0.0, lambda: 0.0, lambda: quotas)
    while work.step():
        pass
    assert look("SELECT (SELECT count(*) FROM measurement), measurement_bytes, alert_bytes FROM run") == [(0, 0, 0)]
    upgraded = tables(look)
    (version_1 / FILE_NAME).unlink()
    assert writer.close(30)
    open_writer()
    assert tables(look) == upgraded
