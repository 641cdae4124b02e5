"""Opening the history to read it: never a byte is written, and no writer waits."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from rankd.store.errors import FAILURES, StoreError
from rankd.store.schema import FILE_NAME, VERSION

BUSY_SECONDS = 5.0
"""Readers of a WAL wait for nobody, but for a moment while another process recovers it after a crash."""

CACHE_KIB = 16 << 10
"""A run's newest rows lie on one page a layer: room for 4,000 of them."""

NO_SHM = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)


def open_to_read(data: Path) -> sqlite3.Connection:
    """A read-only connection to the history in the directory `data`, whether a daemon writes to it or none. Raises
    StoreError."""
    file = data / FILE_NAME
    try:
        if not file.exists():
            raise StoreError("missing", f"no history in {data}: expected {FILE_NAME}, which `rankd serve --data` makes")
        return _checked(_connect(file), file)
    except FAILURES as error:
        raise said_of(file, error) from None


def said_of(file: Path, error: Exception) -> StoreError:
    """What one of FAILURES, or a damaged row, says of `file`."""
    said = StoreError.of(error)
    return StoreError(said.kind, f"{file}: {said}")


def _connect(file: Path) -> sqlite3.Connection:
    """A file in WAL mode needs its -shm, which only who may write to the directory can make, and only with room on the
    disk. Without it the file by itself is all there is, provided that no -wal holds more."""
    connection = _try(file, "mode=ro")
    try:
        connection.execute("PRAGMA schema_version").fetchone()
        return connection
    except sqlite3.OperationalError as error:
        connection.close()
        if error.sqlite_errorcode & 0xFF not in NO_SHM:
            raise
        wal = file.with_name(f"{file.name}-wal")
        if wal.exists() and wal.stat().st_size > 0:
            raise StoreError(
                "io",
                f"{file}: its newest rows are in {wal.name}, which cannot be read from a directory that is read-only "
                "or full; copy both to another",
            ) from None
        return _try(file, "mode=ro&immutable=1")


def _try(file: Path, options: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"{file.resolve().as_uri()}?{options}",
        uri=True,
        timeout=BUSY_SECONDS,
        isolation_level=None,
        check_same_thread=False,
    )


def _checked(connection: sqlite3.Connection, file: Path) -> sqlite3.Connection:
    """The same connection, if what it leads to is a history that this rankd reads; closed otherwise."""
    try:
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
        version: int = connection.execute("PRAGMA user_version").fetchone()[0]
        if version == VERSION:
            return connection
        if version > VERSION:
            raise StoreError("version", f"{file}: its version is {version}; this rankd reads up to {VERSION}")
        if version > 0:
            raise StoreError("version", f"{file}: its version is {version}; `rankd serve` brings it to {VERSION}")
        raise StoreError("damaged", f"{file}: no history of rankd; expected one of version {VERSION}")
    except BaseException:
        connection.close()
        raise
