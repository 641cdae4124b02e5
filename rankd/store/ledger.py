"""The open history: one transaction after another, and the chores between them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rankd.config import HistoryConfig
from rankd.store.batch import Batch, LayerKey, add_stream, add_superseded
from rankd.store.database import open_for_writing, stream_id_of
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.ids import Ids
from rankd.store.retention import ClockWatch, DiskQuotas, Retention
from rankd.store.rollup import Rollup

Switch = tuple[str, Mapping[tuple[str, str], int]]
"""A stream that begins, and where: (kind, run) → base."""


class Ledger:
    """For one thread. Raises sqlite3.Error, OSError or StoreError; after any of them only `close` is left to call."""

    def __init__(
        self,
        path: Path,
        config: HistoryConfig,
        watch: ClockWatch,
        clock: Callable[[], float],
        disk_quotas: DiskQuotas | None = None,
    ) -> None:
        self.path = path
        self._clock = clock
        self._connection = open_for_writing(path)
        try:
            self._identity = _identity(path)
            self._ids = Ids(self._connection)
            self._rollup = Rollup(self._connection)
            self._retention = Retention(self._connection, config, watch, clock, disk_quotas=disk_quotas)
            self.stream_id = stream_id_of(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def commit(
        self, entries: Sequence[Entry | AlertEntry], superseded: Mapping[LayerKey, int], switches: Sequence[Switch]
    ) -> int:
        """All or nothing. Entries that the file has already are passed over. Returns how many measurements are new."""
        if _identity(self.path) != self._identity:
            raise StoreError("io", f"{self.path} was removed or replaced while it was written")
        if self._ids.too_many:
            self._ids.forget()
        self._connection.execute("BEGIN IMMEDIATE")
        batch = Batch(self._ids, self._clock())
        for entry in entries:
            batch.add(entry)
        num_rows = batch.write(self._connection)
        add_superseded(self._connection, self._ids, superseded)
        for stream_id, bases in switches:
            add_stream(self._connection, self._ids, stream_id, bases)
        self._connection.execute("COMMIT")
        return num_rows

    def chore(self) -> bool:
        """A slice of roll-up or retention, well under a second. Returns whether there is more to do."""
        if self._rollup.step():
            return True
        deleted = self._retention.step()
        if deleted:
            self._ids.forget()
        return deleted

    def checkpoint(self) -> None:
        """Copy the log into the file and empty it, as far as readers allow."""
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        """Rolls back what was under way."""
        try:
            self._connection.close()
        except sqlite3.Error as error:  # the disk that failed may fail the goodbye as well
            raise StoreError.of(error) from error


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino
