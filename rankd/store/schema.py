"""The tables of the history, and how an older file becomes one of today's version."""

from __future__ import annotations

import sqlite3

from rankd.config import ConfigError

VERSION = 1

FILE_NAME = "history.db"
"""In the data directory."""

TABLES = """
-- 'stream_id': of the numbers in use. 'writer': the process that wrote last.
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- num_measurements and num_alerts count what was ever recorded: the newest row's n. Deleting rows never lowers them: a
-- run of which nothing is left keeps this row, without times, so that no number is given twice in a stream.
CREATE TABLE run (
    run_id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    first_time REAL, last_time REAL, last_step INTEGER,
    num_measurements INTEGER NOT NULL DEFAULT 0,
    num_alerts INTEGER NOT NULL DEFAULT 0,
    bin_steps INTEGER NOT NULL DEFAULT 1,   -- width of a bin of the roll-up, a power of two
    rolled_n INTEGER NOT NULL DEFAULT 0     -- the roll-up holds the measurements up to this n
);

-- Coverage: how new what we know of a layer is, and how much of it was passed over for something newer.
CREATE TABLE layer (
    layer_id INTEGER PRIMARY KEY,
    run_id INTEGER NOT NULL REFERENCES run,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    last_step INTEGER, last_time REAL,
    num_measurements INTEGER NOT NULL DEFAULT 0,
    num_superseded INTEGER NOT NULL DEFAULT 0,
    rolled_step INTEGER,                    -- of the last finite, not all-zero measurement in the roll-up
    UNIQUE (run_id, name, role)
);

-- What most measurements of a layer have in common, once. shape: a JSON list.
CREATE TABLE kind (
    kind_id INTEGER PRIMARY KEY,
    shape TEXT NOT NULL, method TEXT NOT NULL, source_dtype TEXT NOT NULL, wire_dtype TEXT NOT NULL,
    UNIQUE (shape, method, source_dtype, wire_dtype)
);

-- n numbers the measurements of a run in the order in which the detectors saw them. Clustered by layer, which is how
-- they are looked at. extra: further keys of the JSON row, as JSON; error bars among them.
CREATE TABLE measurement (
    layer_id INTEGER NOT NULL, n INTEGER NOT NULL, run_id INTEGER NOT NULL,
    step INTEGER, time REAL, kind_id INTEGER NOT NULL, finite INTEGER NOT NULL, zero INTEGER NOT NULL,
    stable_rank REAL, effective_rank REAL, effective_rank_energy REAL, participation_ratio REAL,
    spectral_norm REAL, frobenius_norm REAL, measure_seconds REAL, extra TEXT,
    PRIMARY KEY (layer_id, n)
) WITHOUT ROWID;
CREATE UNIQUE INDEX measurement_of_run ON measurement (run_id, n);

CREATE TABLE spectrum (
    layer_id INTEGER NOT NULL, n INTEGER NOT NULL, summary BLOB NOT NULL, PRIMARY KEY (layer_id, n)
) WITHOUT ROWID;

-- n numbers the alert events of a run. body: the alert as JSON, as it was published, without stream_id and seq.
CREATE TABLE alert (
    run_id INTEGER NOT NULL, n INTEGER NOT NULL, alert_id TEXT NOT NULL, layer TEXT, step INTEGER,
    rule TEXT NOT NULL, state TEXT NOT NULL, severity TEXT NOT NULL, time REAL, body TEXT NOT NULL,
    PRIMARY KEY (run_id, n)
) WITHOUT ROWID;
CREATE TABLE firing (alert_id TEXT PRIMARY KEY, run_id INTEGER NOT NULL, n INTEGER NOT NULL) WITHOUT ROWID;

-- The detectors of a layer as they were after its measurement n; what came after is fed to them again.
CREATE TABLE judge (layer_id INTEGER PRIMARY KEY, n INTEGER NOT NULL, state BLOB NOT NULL);

-- An event's number in a stream is n - base. A topic without a row has base 0. `position` orders the streams by age.
CREATE TABLE stream (stream_id TEXT PRIMARY KEY, position INTEGER NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE base (
    stream_id TEXT NOT NULL, run_id INTEGER NOT NULL, kind TEXT NOT NULL, base INTEGER NOT NULL,
    PRIMARY KEY (stream_id, run_id, kind)
) WITHOUT ROWID;

-- Measurements by layer and by bins of run.bin_steps steps, for wide looks: at most 128 bins a layer. num counts all,
-- the sums are over num_finite of them. Bins outlive their measurements. A layer that goes back to step s has its bins
-- from s on made anew, so that they show the current line alone.
CREATE TABLE rollup (
    layer_id INTEGER NOT NULL, bin INTEGER NOT NULL, run_id INTEGER NOT NULL,
    num INTEGER NOT NULL, num_finite INTEGER NOT NULL,
    stable_rank_sum REAL, stable_rank_min REAL, stable_rank_max REAL,
    effective_rank_sum REAL, effective_rank_min REAL, effective_rank_max REAL,
    spectral_norm_sum REAL, spectral_norm_min REAL, spectral_norm_max REAL,
    PRIMARY KEY (run_id, layer_id, bin)
) WITHOUT ROWID;
"""


class SchemaError(ConfigError):
    """The file is no history, or one of a newer rankd."""


def version_of(connection: sqlite3.Connection) -> int:
    """Of the file behind `connection`, 0 for a new one. SchemaError where it is of a newer rankd or another program;
    nothing is written."""
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > VERSION:
        raise SchemaError(f"history: its version is {version}; expected at most {VERSION}: a newer rankd wrote it")
    if version == 0 and connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise SchemaError("history: a database of another program; expected a file that rankd made")
    return version


def migrate(connection: sqlite3.Connection) -> None:
    """Bring the file to VERSION, in one transaction; a new file gets the tables. Raises SchemaError."""
    if version_of(connection) == 0:
        connection.executescript(f"BEGIN IMMEDIATE; {TABLES} PRAGMA user_version = {VERSION}; COMMIT;")
