"""What the history forgets, and when: by age, by bytes, and by the quota of a namespace."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from rankd.config import HistoryConfig
from rankd.namespaces import namespace_of
from rankd.store import removal
from rankd.store.database import used_bytes
from rankd.store.removal import Removal
from rankd.store.rows import INT, REAL, TEXT, RowType
from rankd_client.wire import DAEMON_RUN

log = logging.getLogger("rankd.store")

SLICE_PAGES = 500
"""Free pages given back to the file system in one transaction."""

ENDED_SECONDS = 3600.0
"""A run this much older than the newest row of all is taken to have ended."""

LOW_WATER = 0.95
"""Share of a limit down to which rows are deleted once it was passed, so that it is not passed with the next row."""

ALERT_SHARE = 0.5
"""Of the bytes that a namespace has, what alerts may be before the oldest of them go. In most runs they are a
hundredth; who floods the history with alerts pays with these."""

KEPT_SHARE = 0.5
"""Of `max_bytes`, what measurements and alerts may be whatever else is in the file."""

STEADY_SECONDS = 3600.0
JUMP_SECONDS = 60.0

_NUMBER_TIME = RowType(INT, REAL)
_LEFT = RowType(INT, TEXT, REAL, INT, INT)

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


_EMPTY = """
SELECT run_id FROM run WHERE num_measurements > 0 AND measurement_bytes = 0
AND last_time < (SELECT max(min(last_time, :now)) FROM run) - :ended
AND NOT EXISTS (SELECT 1 FROM measurement m WHERE m.run_id = run.run_id) LIMIT 1
"""


@dataclass(frozen=True, slots=True)
class _Run:
    """`measurement_bytes` is 0 only where there are none; so with alerts."""

    run_id: int
    namespace: str | None
    last_time: float
    measurement_bytes: int
    alert_bytes: int


class Retention:
    """Deletes the oldest rows, a slice at a time.

    For want of bytes the namespace that has most in the file gives first: of its runs, those that have ended before
    others. Its alerts go before its measurements only where they are more than half of what it has; but all that is
    left of a run that has ended goes with its last measurement. Then there is its name, and its numbers.
    """

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
        self._removal = Removal(connection, clock)
        self._config = config
        self._trust = trust
        self._clock = clock
        self._steady = steady
        self._disk_quotas = disk_quotas
        self._old: tuple[int, int] | None = None  # (run, number) up to which measurements are known to be too old
        self._over: set[str | None] = set()  # namespaces on their way to the low-water mark; None: the whole file

    def step(self) -> bool:
        """One slice. Returns whether something was deleted: then there may be more."""
        now = self._clock()
        believed = self._trust.believed(now, self._steady())
        return (
            self._removal.purged_layers()
            or (believed and self._age(now))
            or self._empty(now)
            or self._bytes(now)
            or self._vacuum()
        )

    def _age(self, now: float) -> bool:
        cutoff = now - self._config.max_age_days * 86_400
        query = "SELECT run_id, last_time FROM run WHERE first_time < ? ORDER BY first_time LIMIT 1"
        row = self._connection.execute(query, (cutoff,)).fetchone()
        if row is None:
            return False
        run_id, last_time = row
        slice_n = self._removal.oldest("measurement", run_id)
        if not slice_n and last_time < cutoff:
            self._removal.purge(run_id)
            return True
        if self._old is None or self._old[0] != run_id:
            self._old = run_id, self._find_old(run_id, now, cutoff)
        upto = min(slice_n, self._old[1])
        if upto == self._old[1]:
            self._old = None
        self._removal.measurements(run_id, upto)
        return True

    def _find_old(self, run_id: int, now: float, cutoff: float) -> int:
        """The number of the run's last measurement that is too old, or of one before it; 0 where none is. Rows of the
        future come from a clock that was ahead: they are as old as those after them."""
        query = "SELECT n, time FROM measurement WHERE run_id = ? AND time <= ? ORDER BY n LIMIT ?"
        found = self._connection.execute(query, (run_id, now, removal.SLICE_ROWS)).fetchall()
        rows = list(map(_NUMBER_TIME.check, found))
        upto = 0
        for n, row_time in rows:
            if row_time >= cutoff:
                break
            upto = n
        if not upto:
            first_time = rows[0][1] if rows else now
            self._connection.execute("UPDATE run SET first_time = ? WHERE run_id = ?", (first_time, run_id))
        return upto

    def _empty(self, now: float) -> bool:
        """A slice of a run that has ended and of which no measurement is left."""
        row = self._connection.execute(_EMPTY, {"now": now, "ended": ENDED_SECONDS}).fetchone()
        if row is not None:
            self._removal.purge(row[0])
        return row is not None

    def _bytes(self, now: float) -> bool:
        total_bytes, free_bytes = used_bytes(self._connection)
        is_over = self._is_over(None, total_bytes - free_bytes, self._config.max_bytes)
        quotas = {} if self._disk_quotas is None else self._disk_quotas()
        if not quotas and not is_over:
            return False
        runs = self._runs()
        ended_before = max((min(run.last_time, now) for run in runs), default=0.0) - ENDED_SECONDS
        excess_bytes = total_bytes - free_bytes - LOW_WATER * self._config.max_bytes
        if is_over and self._take_from_any(runs, ended_before, excess_bytes):
            return True
        for namespace, quota_bytes in quotas.items():
            own = [run for run in runs if run.namespace == namespace]
            held_bytes = _held_bytes(own)
            excess_bytes = held_bytes - LOW_WATER * quota_bytes
            if self._is_over(namespace, held_bytes, quota_bytes) and self._take(own, ended_before, excess_bytes):
                return True
        return False

    def _is_over(self, namespace: str | None, num_bytes: float, max_bytes: float) -> bool:
        limit = max_bytes * LOW_WATER if namespace in self._over else max_bytes
        over = num_bytes > limit
        (self._over.add if over else self._over.discard)(namespace)
        return over

    def _take_from_any(self, runs: Sequence[_Run], ended_before: float, excess_bytes: float) -> bool:
        """What the layers' detectors remember, roll-ups and names can fill the file alone; that is no reason to delete
        everything that was measured. Then it is up to the namespace with most layers: runs of it that have ended go."""
        owners = {run.namespace for run in runs}
        namespaces = [[run for run in runs if run.namespace == owner] for owner in owners]
        if _held_bytes(runs) > self._config.max_bytes * KEPT_SHARE:
            namespaces.sort(key=_held_bytes, reverse=True)
            return any(self._take(own, ended_before, excess_bytes) for own in namespaces)
        layers = dict(self._connection.execute("SELECT run_id, count(*) FROM layer GROUP BY run_id").fetchall())
        most = max(namespaces, key=lambda own: sum(layers.get(run.run_id, 0) for run in own), default=[])
        ended = [run for run in most if run.measurement_bytes and run.last_time < ended_before]
        return bool(ended) and self._take(ended, ended_before, excess_bytes)

    def _take(self, own: Sequence[_Run], ended_before: float, excess_bytes: float) -> bool:
        """A slice of what these runs of a namespace have: no more than there is too much, as far as one can tell."""
        alerts_bytes = sum(run.alert_bytes for run in own)
        if alerts_bytes > _held_bytes(own) * ALERT_SHARE:
            run = max(own, key=lambda run: run.alert_bytes)
            self._removal.alerts(
                run.run_id, self._removal.slice_of("alert", run.run_id, excess_bytes / run.alert_bytes)
            )
            return True
        measured = [run for run in own if run.measurement_bytes]
        if not measured:
            return False
        ended = [run for run in measured if run.last_time < ended_before]
        largest = max(measured, key=lambda run: run.measurement_bytes)
        run = min(ended, key=lambda run: run.last_time, default=largest)
        share = excess_bytes / run.measurement_bytes
        self._removal.measurements(run.run_id, self._removal.slice_of("measurement", run.run_id, share))
        return True

    def _runs(self) -> list[_Run]:
        """Those of which there is something left. Counted bytes of a file of version 1 are a guess, hence the second
        look at whether there is anything."""
        bytes_of = "max(run.{0}_bytes, 1) * EXISTS (SELECT 1 FROM {0} t WHERE t.run_id = run.run_id)"
        columns = ", ".join(map(bytes_of.format, ("measurement", "alert")))
        query = f"SELECT run_id, name, last_time, {columns} FROM run WHERE last_time IS NOT NULL"
        rows = map(_LEFT.check, self._connection.execute(query).fetchall())
        return [_Run(run_id, _owner(name), *others) for run_id, name, *others in rows]

    def _vacuum(self) -> bool:
        """Give free pages back: where the file is larger than it may be, or much of it is empty."""
        total_bytes, free_bytes = used_bytes(self._connection)
        excess = free_bytes > 0 and total_bytes > self._config.max_bytes
        if not excess and free_bytes < max(total_bytes // 8, 16 << 20):
            return False
        # as a script, which is run to its end: as a statement it is left after the first page
        self._connection.executescript(f"PRAGMA incremental_vacuum({SLICE_PAGES})")
        return used_bytes(self._connection)[0] < total_bytes


def _owner(run: str) -> str | None:
    """The namespace whose quota a run counts for; None for the daemon's own, which is nobody's."""
    return None if run == DAEMON_RUN else namespace_of(run)


def _held_bytes(runs: Iterable[_Run]) -> int:
    return sum(run.measurement_bytes + run.alert_bytes for run in runs)
