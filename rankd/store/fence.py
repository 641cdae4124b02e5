"""One process alone writes the history: a lock on its directory, and a mark in its file in case the lock is removed."""

from __future__ import annotations

import os
import secrets
import sqlite3
from pathlib import Path

from rankd.store.errors import StoreError
from rankd.store.place import lock


class Fence:
    """Holds the directory. Raises StoreInUse or PlaceError where it cannot be had.

    Entries are known by their numbers; the numbers are ours only as long as nobody else writes. Every transaction
    therefore looks at the mark (`meta`, 'writer'), and the first one of a process sets it.
    """

    def __init__(self, data: Path) -> None:
        self._path = data / "lock"
        self._descriptor = lock(data)
        self._mine = secrets.token_hex(8)
        self._former: str | None = None
        self._adopted = False

    def hold(self) -> None:
        """Take the lock again where its file was removed. Raises like the constructor."""
        held = os.fstat(self._descriptor)
        try:
            there = self._path.lstat()
        except FileNotFoundError:
            there = None
        if there is None or not os.path.samestat(held, there):
            former, self._descriptor = self._descriptor, lock(self._path.parent)
            os.close(former)

    def adopt(self, connection: sqlite3.Connection, is_new: bool) -> None:
        """Once at the start, and for a file that we have made: whoever wrote it before, it is ours from now on."""
        if is_new or not self._adopted:
            self._former, self._adopted = _mark(connection), True

    def check(self, connection: sqlite3.Connection) -> str | None:
        """The mark, if it is ours, or was there when we began. StoreError where another has set its own."""
        mark = _mark(connection)
        if mark not in (self._former, self._mine):
            raise StoreError(
                "busy",
                "another daemon writes this history, or wrote the file that is in its place now; once no other does, "
                "start this one anew",
            )
        return mark

    def pass_through(self, connection: sqlite3.Connection) -> None:
        """At the beginning of each transaction. StoreError as for `check`."""
        if self.check(connection) != self._mine:
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('writer', ?)", (self._mine,))

    def passed(self) -> None:
        """The transaction is committed: from now on the mark must be ours."""
        self._former = self._mine

    def release(self) -> None:
        os.close(self._descriptor)


def _mark(connection: sqlite3.Connection) -> str | None:
    row = connection.execute("SELECT value FROM meta WHERE key = 'writer'").fetchone()
    return None if row is None else str(row[0])
