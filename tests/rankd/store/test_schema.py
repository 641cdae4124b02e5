"""A history that an older rankd wrote."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.records import Measurement
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.retention import ClockTrust, Retention
from rankd.store.schema import FILE_NAME, VERSION

Look = Callable[..., list[Any]]
Open = Callable[..., Any]

WRITTEN = Path(__file__).with_name("version_2")
"""A dump of the file, and the rows that were told."""

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


@pytest.fixture(params=[1, 2])
def version(request: pytest.FixtureRequest) -> int:
    return request.param


@pytest.fixture
def older(data: Path, version: int) -> Path:
    """What rankd wrote when its version was 2: rows of all tiers, of a layer that is all zero and then not finite, and
    two from before there were tiers; an alert that is on."""
    data.mkdir(mode=0o700)
    connection = sqlite3.connect(data / FILE_NAME, isolation_level=None)
    connection.executescript(WRITTEN.with_suffix(".sql").read_text())
    if version == 1:
        connection.executescript(BACK_TO_1)
    connection.close()
    return data


def tables(look: Look) -> list[Any]:
    """Columns and indexes of each table."""
    columns = "m.name, t.name, t.type, t.[notnull], t.dflt_value, t.pk"
    found = look(f"SELECT {columns} FROM sqlite_master m, pragma_table_info(m.name) t ORDER BY 1, 2")
    return found + look("SELECT name, tbl_name FROM sqlite_master WHERE type = 'index' ORDER BY 1")


def lines(reader: Reader) -> list[str]:
    """Keys in order; numbers to the last bit."""
    return [json.dumps(row.to_json(), sort_keys=True) for _, row in reader.measurements("lm")]


def test_an_older_version_becomes_todays(make: Any, older: Path, version: int, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    assert look("PRAGMA user_version") == [(VERSION,)]
    assert look("SELECT measurement_bytes > 500, alert_bytes > 300 FROM run") == [(1, 1)]
    with Reader(older) as reader:
        assert [n for n, _ in reader.measurements("lm")] == list(range(1, 13))
        assert [n for _, n, _ in reader.firing()] == [1]
    writer.write(*make.entries(5, "lm", first=13))
    num_kinds = {1: [(0, 8), (1, 1)], 2: [(1, 9)]}
    assert look("SELECT run_id, count(*) FROM kind GROUP BY run_id ORDER BY 1") == num_kinds[version]
    with Reader(older) as reader:
        assert [n for n, _ in reader.measurements("lm")] == list(range(1, 18))
    quotas = {"": 1}
    connection = writer._home.ledger._connection
    work = Retention(connection, HistoryConfig(), ClockTrust(0.0, 0.0), lambda: 0.0, lambda: 0.0, lambda: quotas)
    while work.step():
        pass
    assert look("SELECT (SELECT count(*) FROM measurement), measurement_bytes, alert_bytes FROM run") == [(0, 0, 0)]
    upgraded = tables(look)
    (older / FILE_NAME).unlink()
    assert writer.close(30)
    open_writer()
    assert tables(look) == upgraded


def test_older_rows_are_read_as_they_were_told(older: Path, open_writer: Open, look: Look) -> None:
    """What stands in columns now was JSON then; what was not there is not there."""
    written = WRITTEN.with_suffix(".jsonl").read_text().splitlines()
    told = [json.dumps(json.loads(line), sort_keys=True) for line in written]
    writer = open_writer()
    with Reader(older) as reader:
        assert lines(reader) == told
        found = [row for _, row in reader.measurements("lm")]
        assert found == [Measurement.from_json(json.loads(line)) for line in written]
        assert reader.judge("lm", "h.0.w", "weight")[1] == [row for row in found[1:] if row.layer == "h.0.w"]
    writer.write(*(Entry(n, row) for n, row in enumerate(found, 13)))
    with Reader(older) as reader:
        assert lines(reader) == told + told
    sizes = [size for (size,) in look("SELECT coalesce(length(extra), 0) FROM measurement WHERE n > 12 ORDER BY n")]
    assert sizes[:3] == [0, 0, 0] and sizes[8:11] == [0, 0, 0], "exact rows need no JSON"
    assert look("SELECT nuclear_norm FROM measurement WHERE n = 15") == [(found[2].metrics["nuclear_norm"],)]
