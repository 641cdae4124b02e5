"""What the history forgets, and when: by age, by bytes, and by the quota of a namespace."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from rankd.config import HistoryConfig
from rankd.quota import namespace_of
from rankd.store.database import used_bytes
from rankd.store.folding import fold
from rankd_client.wire import DAEMON_RUN

log = logging.getLogger("rankd.store")

SLICE_ROWS = 2_000
"""Measurements deleted in one transaction, some 20 ms: commits wait for it."""

SLICE_PAGES = 500
"""Free pages given back to the file system in one transaction."""

ENDED_SECONDS = 3600.0
"""A run this much older than the newest row of all is taken to have ended."""

LOW_WATER = 0.95
"""Share of a limit down to which rows are deleted once it was passed, so that it is not passed with the next row."""

STEADY_SECONDS = 3600.0
JUMP_SECONDS = 60.0

DiskQuotas = Callable[[], Mapping[str, int]]
"""Namespace ("" the common one) → bytes."""


def steady_clock() -> float:
    """Seconds that no one sets; asleep or awake."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class ClockTrust:
    """Whether the wall clock may be believed enough to delete by it: it has run beside the steady one for an hour, and
    what it jumped by since the start does not add up to a minute. A clock that came back is believed again."""

    def __init__(self, wall: float, steady: float) -> None:
        self._begin = steady
        self._wall, self._steady = wall, steady
        self._jumped_seconds = 0.0

    def believed(self, wall: float, steady: float) -> bool:
        """To be called often: what the clocks drift apart by between two calls is no jump."""
        jump = (wall - self._wall) - (steady - self._steady)
        self._wall, self._steady = wall, steady
        if abs(jump) >= JUMP_SECONDS:
            log.warning("the clock jumped by %.0f s; nothing is deleted by age until it is back", jump)
            self._jumped_seconds += jump
        return steady - self._begin >= STEADY_SECONDS and abs(self._jumped_seconds) < JUMP_SECONDS


@dataclass(frozen=True, slots=True)
class _Run:
    run_id: int
    namespace: str | None
    last_time: float
    num_rows: int


class Retention:
    """Deletes the oldest rows, a slice at a time. The measurements of a run that has ended go before those of others;
    its alerts go when its last measurement has gone. What is left of a run then is its name and its numbers."""

    def __init__(
        self,
        connection: sqlite3.Connection,
        config: HistoryConfig,
        trust: ClockTrust,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = steady_clock,
        disk_quotas: DiskQuotas | None = None,
    ) -> None:
        self._connection = connection
        self._config = config
        self._trust = trust
        self._clock = clock
        self._steady = steady
        self._disk_quotas = disk_quotas
        self._over: set[str | None] = set()  # namespaces on their way to the low-water mark; None: the whole file

    def step(self) -> bool:
        """One slice. Returns whether something was deleted: then there may be more."""
        now = self._clock()
        believed = self._trust.believed(now, self._steady())
        return (believed and self._age(now - self._config.max_age_days * 86_400)) or self._bytes() or self._vacuum()

    def _age(self, cutoff: float) -> bool:
        query = "SELECT run_id FROM run WHERE first_time < ? ORDER BY first_time LIMIT 1"
        row = self._connection.execute(query, (cutoff,)).fetchone()
        if row is None:
            return False
        query = "SELECT n, time FROM measurement WHERE run_id = ? ORDER BY n LIMIT ?"
        upto = 0
        for n, row_time in self._connection.execute(query, (row[0], SLICE_ROWS)).fetchall():
            if row_time is not None and row_time >= cutoff:
                break
            upto = n
        self._delete(row[0], upto, ended_before=cutoff)
        return True

    def _bytes(self) -> bool:
        total_bytes, free_bytes = used_bytes(self._connection)
        num_bytes = total_bytes - free_bytes
        quotas = {} if self._disk_quotas is None else self._disk_quotas()
        if not quotas and not self._is_over(None, num_bytes, self._config.max_bytes):
            return False
        runs = self._runs()
        if self._is_over(None, num_bytes, self._config.max_bytes) and self._delete_oldest(runs, runs):
            return True
        row_bytes = num_bytes / max(1, sum(run.num_rows for run in runs))
        for namespace, quota_bytes in quotas.items():
            own = [run for run in runs if run.namespace == namespace]
            held_bytes = sum(run.num_rows for run in own) * row_bytes
            if self._is_over(namespace, held_bytes, quota_bytes) and self._delete_oldest(own, runs):
                return True
        return False

    def _is_over(self, namespace: str | None, num_bytes: float, max_bytes: float) -> bool:
        limit = max_bytes * LOW_WATER if namespace in self._over else max_bytes
        over = num_bytes > limit
        (self._over.add if over else self._over.discard)(namespace)
        return over

    def _delete_oldest(self, runs: Iterable[_Run], everyone: Iterable[_Run]) -> bool:
        filled = [run for run in runs if run.num_rows]
        if not filled:
            return False
        ended_before = max(run.last_time for run in everyone) - ENDED_SECONDS
        ended = [run for run in filled if run.last_time < ended_before]
        chosen = min(ended, key=lambda run: run.last_time) if ended else max(filled, key=lambda run: run.num_rows)
        query = "SELECT max(n) FROM (SELECT n FROM measurement WHERE run_id = ? ORDER BY n LIMIT ?)"
        upto = self._connection.execute(query, (chosen.run_id, SLICE_ROWS)).fetchone()[0]
        self._delete(chosen.run_id, upto or 0, ended_before)
        return upto is not None

    def _runs(self) -> list[_Run]:
        """Those of which there is something left. Rows are counted by their numbers, which have few gaps."""
        query = """
            SELECT run_id, name, last_time,
            coalesce(num_measurements + 1 - (SELECT min(n) FROM measurement m WHERE m.run_id = run.run_id), 0)
            FROM run WHERE last_time IS NOT NULL
        """
        rows = self._connection.execute(query).fetchall()
        return [_Run(run_id, _owner(name), last_time, num) for run_id, name, last_time, num in rows]

    def _delete(self, run_id: int, upto: int, ended_before: float) -> None:
        """The run's rows up to number `upto`, or fewer; and where none is left and it has ended, all else of it."""
        execute = self._connection.execute
        execute("BEGIN IMMEDIATE")
        upto = fold(self._connection, run_id, upto)
        slice_of_run = "FROM measurement WHERE run_id = ? AND n <= ?"
        execute(f"DELETE FROM spectrum WHERE (layer_id, n) IN (SELECT layer_id, n {slice_of_run})", (run_id, upto))
        execute(f"DELETE {slice_of_run}", (run_id, upto))
        query = "SELECT time FROM measurement WHERE run_id = ? ORDER BY n LIMIT 1"
        oldest = execute(query, (run_id,)).fetchone()
        last_time = execute("SELECT last_time FROM run WHERE run_id = ?", (run_id,)).fetchone()[0]
        if oldest is None and last_time < ended_before:
            self._purge(run_id)
        else:
            first_time = last_time if oldest is None else oldest[0]
            execute("UPDATE run SET first_time = ? WHERE run_id = ?", (first_time, run_id))
        execute("COMMIT")

    def _purge(self, run_id: int) -> None:
        execute = self._connection.execute
        execute("DELETE FROM judge WHERE layer_id IN (SELECT layer_id FROM layer WHERE run_id = ?)", (run_id,))
        for table in ("firing", "alert", "rollup", "layer"):
            execute(f"DELETE FROM {table} WHERE run_id = ?", (run_id,))
        execute(
            "UPDATE run SET first_time = NULL, last_time = NULL, last_step = NULL, bin_steps = 1, "
            "rolled_n = num_measurements WHERE run_id = ?",
            (run_id,),
        )

    def _vacuum(self) -> bool:
        """Give free pages back: where the file is larger than it may be, or much of it is empty."""
        total_bytes, free_bytes = used_bytes(self._connection)
        excess = free_bytes > 0 and total_bytes > self._config.max_bytes
        if not excess and free_bytes < max(total_bytes // 8, 16 << 20):
            return False
        self._connection.execute(f"PRAGMA incremental_vacuum({SLICE_PAGES})").fetchall()
        return used_bytes(self._connection)[0] < total_bytes


def _owner(run: str) -> str | None:
    """The namespace whose quota a run counts for; None for the daemon's own, which is nobody's."""
    return None if run == DAEMON_RUN else namespace_of(run)
