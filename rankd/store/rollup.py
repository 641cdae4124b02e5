"""Keeps the roll-up in step with the measurements: slice by slice, each a transaction of its own."""

from __future__ import annotations

import sqlite3

from rankd.store.rows import INT, MAYBE_INT, RowType, number_of

MAX_BINS = 128
SLICE_ROWS = 10_000
"""Measurements of one transaction, some 50 ms: commits wait for it."""

OLDER_ROWS = 50_000
"""Measurements looked at once more in one transaction, for layers that go back: as many layers as do not pass this, and
the one that does."""

_METRICS = ("stable_rank", "effective_rank", "spectral_norm")
_AGGREGATES = "count(*), sum(finite), " + ", ".join(f"sum({name}), min({name}), max({name})" for name in _METRICS)
_MERGED = "sum(num), sum(num_finite), " + ", ".join(
    f"sum({name}_sum), min({name}_min), max({name}_max)" for name in _METRICS
)


def _added(column: str, kind: str) -> str:
    """A column of a bin that is there already, with a further value. What is null has no say."""
    old, new = f"coalesce({column}, excluded.{column})", f"coalesce(excluded.{column}, {column})"
    if kind == "sum":
        return f"{column} = coalesce({column} + excluded.{column}, {old})"
    return f"{column} = {kind}({old}, {new})"


_ADD = "ON CONFLICT (run_id, layer_id, bin) DO UPDATE SET num = num + excluded.num, " + ", ".join(
    ["num_finite = num_finite + excluded.num_finite"]
    + [_added(f"{name}_{kind}", kind) for name in _METRICS for kind in ("sum", "min", "max")]
)

# What is new, taken out once because it is looked at several times; and the layers that go back in it, to which step.
_TABLES = """
    CREATE TEMP TABLE slice (
        layer_id INTEGER, n INTEGER, step INTEGER, finite INTEGER, zero INTEGER,
        stable_rank REAL, effective_rank REAL, spectral_norm REAL, PRIMARY KEY (layer_id, n)
    ) WITHOUT ROWID;
    CREATE TEMP TABLE back (layer_id INTEGER PRIMARY KEY, step INTEGER, from_n INTEGER);
"""
_TAKE_SLICE = f"""
    INSERT INTO temp.slice SELECT layer_id, n, step, finite, zero, {", ".join(_METRICS)} FROM measurement
    WHERE run_id = :run_id AND n > :rolled AND n <= :upto AND step IS NOT NULL
"""

# Of the last sound row before each: its number. Only sound rows are compared with, as rankd.store.line says.
_SOUND_N = """max(CASE WHEN m.finite AND NOT m.zero THEN m.n END) OVER (
    PARTITION BY m.layer_id ORDER BY m.n ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING)"""
_SOUND_STEP = "(SELECT p.step FROM measurement p WHERE p.layer_id = found.layer_id AND p.n = found.sound_n)"

# The layers of a slice that go back, by when they do so first, and the earliest step that each goes back to.
_RETURNS = f"""
    SELECT layer_id, min(n), min(step) FROM (
        SELECT m.layer_id, m.n, m.step, {_SOUND_N} AS sound_n FROM temp.slice m
    ) AS found
    WHERE step <= coalesce({_SOUND_STEP}, (SELECT rolled_step FROM layer l WHERE l.layer_id = found.layer_id))
    GROUP BY layer_id ORDER BY min(n)
"""
# Of a layer's rows, those after this number are enough to make the bins from `first_step` on anew: what is older and
# not below these bins is void. But a row that is not sound may have been recorded ahead of a few others, hence the
# offset.
_FROM_N = """
    SELECT n FROM measurement WHERE layer_id = :layer_id AND n <= :rolled AND step < :first_step
    AND finite AND NOT zero ORDER BY n DESC LIMIT 1 OFFSET 8
"""
_NUM_OLDER = "SELECT count(*) FROM measurement WHERE layer_id = :layer_id AND n > :from_n AND n <= :rolled"
_REMEMBER = """
    UPDATE layer SET rolled_step = sound.step FROM (
        SELECT layer_id, step, max(n) FROM temp.slice WHERE finite AND NOT zero GROUP BY layer_id
    ) AS sound WHERE layer.layer_id = sound.layer_id
"""
_DROP_BINS = """
    DELETE FROM rollup WHERE run_id = :run_id AND layer_id IN (SELECT layer_id FROM temp.back)
    AND bin >= (SELECT step / :width FROM temp.back WHERE back.layer_id = rollup.layer_id)
"""
_ADD_SLICE = f"""
    INSERT INTO rollup SELECT layer_id, step / :width AS bin, :run_id, {_AGGREGATES} FROM temp.slice
    WHERE layer_id NOT IN (SELECT layer_id FROM temp.back)
    GROUP BY layer_id, bin {_ADD}
"""
# What the layers that went back have on their current lines, in the bins that were dropped, and in earlier ones of the
# slice. Of older rows those of the step gone back to, or of a later one, are void whatever else they are.
_ADD_CURRENT = f"""
    INSERT INTO rollup SELECT layer_id, step / :width AS bin, :run_id, {_AGGREGATES} FROM (
        SELECT *, min(CASE WHEN step <= coalesce({_SOUND_STEP}, rolled_step) THEN step END) OVER (
            PARTITION BY layer_id ORDER BY n DESC ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING
        ) AS back_to
        FROM (
            SELECT m.*, back.step AS first_back, {_SOUND_N} AS sound_n,
                (SELECT rolled_step FROM layer l WHERE l.layer_id = m.layer_id AND m.n > :rolled) AS rolled_step
            FROM temp.back JOIN measurement m ON m.layer_id = back.layer_id AND m.n > back.from_n AND m.n <= :upto
            WHERE m.step IS NOT NULL
        ) AS found
        WHERE n > :rolled OR step < first_back
    ) WHERE (n > :rolled OR step >= first_back / :drop_width * :drop_width) AND (back_to IS NULL OR step < back_to)
    GROUP BY layer_id, bin {_ADD}
"""

_UNROLLED = RowType(INT, INT, INT)
_RETURN = RowType(INT, INT, INT)
_ENDS = RowType(MAYBE_INT, MAYBE_INT)


class Rollup:
    """Bins of `run.bin_steps` steps, at most MAX_BINS from a run's first to its last: where it grows beyond, bins are
    merged in pairs. A layer that goes back to step s loses its bins from s on, and they are made anew of the rows that
    are on its current line, as rankd.store.line has it."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        connection.executescript(_TABLES)

    def step(self) -> bool:
        """One slice, of one run or several. Returns whether there was more to do."""
        room = SLICE_ROWS
        query = "SELECT run_id, rolled_n, num_measurements FROM run WHERE rolled_n < num_measurements"
        runs = self._connection.execute(query).fetchall()
        if not runs:
            return False
        self._connection.execute("BEGIN IMMEDIATE")
        for run_id, rolled, newest in map(_UNROLLED.check, runs):
            wanted = min(newest, rolled + room)
            upto = self._roll(run_id, rolled, wanted)
            room = 0 if upto < wanted else room - (upto - rolled)
            if room <= 0:
                break
        self._connection.execute("COMMIT")
        return room <= 0

    def _roll(self, run_id: int, rolled: int, upto: int) -> int:
        """Take the measurements after `rolled` in. Returns up to which; `upto`, unless the layers that go back until
        then have too many older ones."""
        execute = self._connection.execute
        width = number_of(execute("SELECT bin_steps FROM run WHERE run_id = ?", (run_id,)).fetchone())
        values = {"run_id": run_id, "rolled": rolled, "upto": upto, "width": width, "drop_width": width}
        execute("DELETE FROM temp.slice")
        execute(_TAKE_SLICE, values)
        returns, cut = self._returns(values)
        while cut is not None:  # and again: without its later returns a layer may need older rows than with them
            values["upto"] = cut
            execute("DELETE FROM temp.slice WHERE n > ?", (cut,))
            returns, cut = self._returns(values)
        execute("DELETE FROM temp.back")
        self._connection.executemany("INSERT INTO temp.back VALUES (?, ?, ?)", returns)
        if returns:
            execute(_DROP_BINS, values)
        values["width"] = self._widen(values)
        execute(_ADD_SLICE, values)
        if returns:
            execute(_ADD_CURRENT, values)
        execute(_REMEMBER, values)
        execute("UPDATE run SET rolled_n = :upto, bin_steps = :width WHERE run_id = :run_id", values)
        return values["upto"]

    def _returns(self, values: dict[str, int]) -> tuple[list[tuple[int, int, int]], int | None]:
        """Rows of `back` for the slice, and the number after which it is to be cut, where it has to be."""
        execute = self._connection.execute
        rows: list[tuple[int, int, int]] = []
        num_older = 0
        for layer_id, first_n, step in map(_RETURN.check, execute(_RETURNS, values).fetchall()):
            if num_older > OLDER_ROWS:
                return rows, first_n - 1
            first_step = step // values["width"] * values["width"]
            of = {"layer_id": layer_id, "rolled": values["rolled"], "first_step": first_step}
            of["from_n"] = values["rolled"]
            if first_step < step:  # else nothing older is in these bins but what is void
                of["from_n"] = number_of(execute(_FROM_N, of).fetchone() or (0,))
                num_older += number_of(execute(_NUM_OLDER, of).fetchone())
            rows.append((layer_id, step, of["from_n"]))
        return rows, None

    def _widen(self, values: dict[str, int]) -> int:
        """Make bins wide enough for the slice as well. Returns their width in steps."""
        execute = self._connection.execute
        query = "SELECT min(bin), max(bin) FROM rollup WHERE run_id = :run_id"
        first_bin, last_bin = _ENDS.check(execute(query, values).fetchone())
        first_step, last_step = _ENDS.check(execute("SELECT min(step), max(step) FROM temp.slice").fetchone())
        width = values["width"]
        if first_step is None:
            return width
        first, last = first_step // width, last_step // width
        if first_bin is not None:
            first, last = min(first, first_bin), max(last, last_bin)
        shift = 0
        while (last >> shift) - (first >> shift) >= MAX_BINS:
            shift += 1
        if shift and first_bin is not None:
            execute(
                f"CREATE TEMP TABLE merged AS SELECT layer_id, bin >> :shift AS bin, run_id, {_MERGED} FROM rollup "
                "WHERE run_id = :run_id GROUP BY layer_id, bin >> :shift",
                {**values, "shift": shift},
            )
            execute("DELETE FROM rollup WHERE run_id = :run_id", values)
            execute("INSERT INTO rollup SELECT * FROM temp.merged")
            execute("DROP TABLE temp.merged")
        return width << shift
