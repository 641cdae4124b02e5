"""The open history: one transaction after another, and the chores between them."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rankd.config import HistoryConfig
from rankd.store.batch import Batch, LayerKey, add_stream, add_superseded
from rankd.store.database import copy_log, is_new, open_for_writing, stream_id_of
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.fence import Fence
from rankd.store.ids import Ids
from rankd.store.retention import ClockTrust, DiskQuotas, Retention
from rankd.store.rollup import Rollup

Switch = tuple[str, Mapping[tuple[str, str], int]]
"""A stream that begins, and where: (kind, run) → base."""

RESCUE_MILLISECONDS = 5000


class Ledger:
    """For one thread. Raises sqlite3.Error, OSError or StoreError; after any of them only `close` is left to call."""

    def __init__(
        self,
        path: Path,
        fence: Fence,
        config: HistoryConfig,
        trust: ClockTrust,
        clock: Callable[[], float],
        disk_quotas: DiskQuotas | None = None,
    ) -> None:
        self.path = path
        self._fence = fence
        self._clock = clock
        made = is_new(path)
        self._connection = open_for_writing(path)
        self.opened_at = time.monotonic()
        try:
            fence.adopt(self._connection, made)
            self._files = self._find_files()
            self._ids = Ids(self._connection)
            self._rollup = Rollup(self._connection)
            self._retention = Retention(self._connection, config, trust, clock, disk_quotas=disk_quotas)
            self.stream_id = stream_id_of(self._connection)
        except BaseException:
            self._connection.close()
            raise

    def check_files(self) -> None:
        """SQLite goes on writing to files that were removed. StoreError where one was; what a removed log held is in
        the database then, as far as that was possible."""
        files = self._find_files()
        if files == self._files:
            return
        if files[0] is None:
            text = f"{self.path} was removed while it was written: a new history is begun"
            raise StoreError("gone", text, begun_anew=True)
        if files[0] != self._files[0]:
            text = f"{self.path} was replaced while it was written: the file that is there now is another"
            raise StoreError("gone", text, begun_anew=True)
        saved = "what it held is in the database" if self._rescue() else "the newest rows may be lost"
        raise StoreError("io", f"the log of {self.path} was removed while it was written; {saved}")

    def commit(
        self, entries: Sequence[Entry | AlertEntry], superseded: Mapping[LayerKey, int], switches: Sequence[Switch]
    ) -> int:
        """All or nothing. Entries that the file has already are passed over. Returns how many measurements are new."""
        if self._ids.too_many:
            self._ids.forget()
        try:
            num_rows = self._transact(entries, superseded, switches)
        except sqlite3.Error as error:
            if StoreError.of(error).kind != "full":
                raise
            # What fills the disk may be the log, most of which is in the file already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            self._ids.forget()
            copy_log(self._connection)
            num_rows = self._transact(entries, superseded, switches)
        self._fence.passed()
        return num_rows

    def chore(self) -> bool:
        """A slice of roll-up or retention, well under a second. Returns whether there is more to do."""
        self._fence.check(self._connection)
        if self._rollup.step():
            return True
        deleted = self._retention.step()
        if deleted:
            self._ids.forget()
        return deleted

    def checkpoint(self) -> None:
        """Copy the log into the file and empty it, as far as readers allow."""
        copy_log(self._connection)

    def close(self) -> None:
        """Rolls back what was under way."""
        try:
            self._connection.close()
        except sqlite3.Error as error:  # the disk that failed may fail the goodbye as well
            raise StoreError.of(error) from error

    def _transact(
        self, entries: Sequence[Entry | AlertEntry], superseded: Mapping[LayerKey, int], switches: Sequence[Switch]
    ) -> int:
        self._connection.execute("BEGIN IMMEDIATE")
        self._fence.pass_through(self._connection)
        batch = Batch(self._ids, self._clock())
        for entry in entries:
            batch.add(entry)
        num_rows = batch.write(self._connection)
        add_superseded(self._connection, self._ids, superseded)
        for stream_id, bases in switches:
            add_stream(self._connection, self._ids, stream_id, bases)
        self._connection.execute("COMMIT")
        return num_rows

    def _find_files(self) -> list[tuple[int, int] | None]:
        """(device, inode) of the database, its log and the log's index; None for what is not there."""
        return [_identity(self.path.with_name(self.path.name + suffix)) for suffix in ("", "-wal", "-shm")]

    def _rescue(self) -> bool:
        """The removed log is still open: copy it into the database. Whether all is there."""
        try:
            self._connection.execute(f"PRAGMA busy_timeout = {RESCUE_MILLISECONDS}")
            if not copy_log(self._connection):
                return False
        except sqlite3.Error:
            return False
        # A log put there by others would be taken for what was written last.
        for suffix in ("-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)
        return True


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return status.st_dev, status.st_ino
