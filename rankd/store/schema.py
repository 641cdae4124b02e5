"""The tables of the history, and how an older file becomes one of today's version."""

from __future__ import annotations

import sqlite3

from rankd.config import ConfigError
from rankd.store.columns import HAS_FIRST_METRICS
from rankd.store.size import MEASUREMENT_BYTES, TYPICAL_ALERT_BYTES

VERSION = 3

FILE_NAME = "history.db"
"""In the data directory."""

KIND = """
-- What most measurements of a layer have in common, once a run. shape: a JSON list. last_n: no measurement of a later
-- number is of this kind, so that it can go with that one. Kinds of run 0 are those of version 1, of any run; they
-- stay. tier: '' where the row has none. has: which columns the row has, if only as null (rankd/store/columns.py).
CREATE TABLE kind (
    kind_id INTEGER PRIMARY KEY,
    shape TEXT NOT NULL, method TEXT NOT NULL, source_dtype TEXT NOT NULL, wire_dtype TEXT NOT NULL,
    tier TEXT NOT NULL, has INTEGER NOT NULL, run_id INTEGER NOT NULL, last_n INTEGER NOT NULL,
    UNIQUE (run_id, shape, method, source_dtype, wire_dtype, tier, has)
);
CREATE INDEX kind_by_age ON kind (run_id, last_n);
"""

TABLES = f"""
-- 'stream_id': of the numbers in use. 'writer': the process that wrote last. 'layer_id': the highest that was ever
-- given out, once layers were deleted.
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
    rolled_n INTEGER NOT NULL DEFAULT 0,    -- the roll-up holds the measurements up to this n
    -- about what is in the file of it: measurements with spectra and kinds, and alerts (rankd/store/size.py)
    measurement_bytes INTEGER NOT NULL DEFAULT 0,
    alert_bytes INTEGER NOT NULL DEFAULT 0
);

-- Coverage: how new what we know of a layer is, and how much of it was passed over for something newer.
-- run_id is that of a run, or negative where the layer is being deleted with all else of a run.
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

{KIND}
-- n numbers the measurements of a run in the order in which the detectors saw them. Clustered by layer, which is how
-- they are looked at. extra: further keys of the JSON row, as JSON; error bars among them. Rows of version 2 have all
-- but the first six metrics there.
CREATE TABLE measurement (
    layer_id INTEGER NOT NULL, n INTEGER NOT NULL, run_id INTEGER NOT NULL,
    step INTEGER, time REAL, kind_id INTEGER NOT NULL, finite INTEGER NOT NULL, zero INTEGER NOT NULL,
    stable_rank REAL, effective_rank REAL, effective_rank_energy REAL, participation_ratio REAL,
    spectral_norm REAL, frobenius_norm REAL, nuclear_norm REAL, effective_rank_ratio REAL, stable_rank_ratio REAL,
    num_above_mp_edge REAL, wire_noise_floor REAL, source_noise_floor REAL, error_bound REAL, effective_rank_raw REAL,
    nuclear_norm_raw REAL, effective_rank_ratio_raw REAL, inside_noise INTEGER, measure_seconds REAL, extra TEXT,
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
-- body: of an alert that is on though its row was deleted.
CREATE TABLE firing (
    alert_id TEXT PRIMARY KEY, run_id INTEGER NOT NULL, n INTEGER NOT NULL, body TEXT
) WITHOUT ROWID;

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

# Bytes are counted from here on; those of older rows are guessed from their number.
_FROM_1 = f"""
ALTER TABLE run ADD COLUMN measurement_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE run ADD COLUMN alert_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE firing ADD COLUMN body TEXT;
ALTER TABLE kind ADD COLUMN run_id INTEGER NOT NULL DEFAULT 0;
ALTER TABLE kind ADD COLUMN last_n INTEGER NOT NULL DEFAULT 0;
UPDATE run SET
    measurement_bytes = {MEASUREMENT_BYTES} * coalesce(
        num_measurements + 1 - (SELECT min(n) FROM measurement m WHERE m.run_id = run.run_id), 0),
    alert_bytes = {TYPICAL_ALERT_BYTES} * coalesce(
        num_alerts + 1 - (SELECT min(n) FROM alert a WHERE a.run_id = run.run_id), 0);
"""

# Rows stay as they are, however many: what has a column now is read from where it stood, too.
_FROM_2 = f"""
ALTER TABLE measurement ADD COLUMN nuclear_norm REAL;
ALTER TABLE measurement ADD COLUMN effective_rank_ratio REAL;
ALTER TABLE measurement ADD COLUMN stable_rank_ratio REAL;
ALTER TABLE measurement ADD COLUMN num_above_mp_edge REAL;
ALTER TABLE measurement ADD COLUMN wire_noise_floor REAL;
ALTER TABLE measurement ADD COLUMN source_noise_floor REAL;
ALTER TABLE measurement ADD COLUMN error_bound REAL;
ALTER TABLE measurement ADD COLUMN effective_rank_raw REAL;
ALTER TABLE measurement ADD COLUMN nuclear_norm_raw REAL;
ALTER TABLE measurement ADD COLUMN effective_rank_ratio_raw REAL;
ALTER TABLE measurement ADD COLUMN inside_noise INTEGER;
DROP INDEX IF EXISTS kind_by_age;
ALTER TABLE kind RENAME TO kind_of_2;
{KIND}
INSERT INTO kind
SELECT kind_id, shape, method, source_dtype, wire_dtype, '', {HAS_FIRST_METRICS}, run_id, last_n FROM kind_of_2;
DROP TABLE kind_of_2;
"""

_STEPS = (TABLES, f"{_FROM_1} {_FROM_2}", _FROM_2)
"""From each older version to today's."""


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
    version = version_of(connection)
    if version < VERSION:
        connection.executescript(f"BEGIN IMMEDIATE; {_STEPS[version]} PRAGMA user_version = {VERSION}; COMMIT;")
