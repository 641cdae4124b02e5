"""The file behind the history: opened for writing, made, and moved out of the way when it is damaged."""

from __future__ import annotations

import contextlib
import os
import secrets
import sqlite3
import time
from pathlib import Path

from rankd.store import rows
from rankd.store.errors import StoreError
from rankd.store.schema import migrate, version_of
from rankd.store.size import PAGE_BYTES

BUSY_MILLISECONDS = 1000
CACHE_KIBIBYTES = 16 << 10
"""Each layer has its newest rows on a page of its own: 4,000 layers keep theirs in memory. With 64 MiB nothing
was faster, and a daemon grew for an hour until it was full."""

LOG_PAGES = 4_000
"""Pages (of 4 KiB) in the log before it is copied into the file; a page written many times is copied once."""

LARGE_LOG = 10
"""Times LOG_PAGES: far beyond what a slow query holds up."""


def is_new(path: Path) -> bool:
    """Whether opening it for writing makes it."""
    try:
        return path.stat().st_size == 0
    except FileNotFoundError:
        return True


def open_for_writing(path: Path) -> sqlite3.Connection:
    """The only writing connection, of today's version; makes the file, for its owner alone, where there is none. Raises
    sqlite3.Error, OSError, and SchemaError for a file that is not ours to write."""
    log = path.with_name(f"{path.name}-wal")
    if path.exists() and is_new(path) and log.exists() and log.stat().st_size:
        raise StoreError("damaged", f"{path} is empty, and {log.name} is not: it was cut off")
    with contextlib.suppress(FileExistsError):  # not opened: closing it would drop this process's locks on it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    connection = sqlite3.connect(path, timeout=BUSY_MILLISECONDS / 1000, isolation_level=None, check_same_thread=False)
    try:
        if version_of(connection) == 0:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
        if mode != "wal":
            raise StoreError("io", f"{path}: its journal is {mode!r}, not a write-ahead log")
        # FULL: what was acknowledged survives a power cut. Group commit shares the one fsync among all that waits.
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {LOG_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {2 * LOG_PAGES * PAGE_BYTES}")
        connection.execute(f"PRAGMA cache_size = -{CACHE_KIBIBYTES}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cell_size_check = ON")
        migrate(connection)
        _begin_stream(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def stream_id_of(connection: sqlite3.Connection) -> str:
    """StoreError (damaged) where there is none that we could have written."""
    return rows.stream_id_of(connection.execute("SELECT value FROM meta WHERE key = 'stream_id'").fetchone())


def set_stream(connection: sqlite3.Connection, stream_id: str) -> None:
    """`stream_id` is the newest stream from now on; within the caller's transaction."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES ('stream_id', ?)", (stream_id,))
    connection.execute(
        "INSERT OR IGNORE INTO stream SELECT ?, coalesce(max(position) + 1, 0) FROM stream", (stream_id,)
    )


def copy_log(connection: sqlite3.Connection) -> bool:
    """Copy the log into the file and empty it, as far as readers allow. Whether all of it is in the file."""
    is_busy, num_pages, num_copied = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not is_busy or num_pages == num_copied


def overgrown(path: Path) -> str | None:
    """What is to be said of a log many times as large as copying leaves it."""
    log = path.with_name(f"{path.name}-wal")
    try:
        num_bytes = log.stat().st_size
    except OSError:  # whoever writes next says so
        return None
    if num_bytes <= LARGE_LOG * LOG_PAGES * PAGE_BYTES:
        return None
    return f"{log} has grown to {num_bytes >> 20} MiB and cannot be emptied: a program reads the history without pause"


def used_bytes(connection: sqlite3.Connection) -> tuple[int, int]:
    """(bytes of the file, bytes in it that are free)."""
    size, pages, free = (
        connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
    )
    return size * pages, size * free


def move_aside(path: Path, now: float) -> Path:
    """Rename the file and what belongs to it; returns its new path. Raises OSError."""
    name = f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}"
    aside = path.with_name(name)
    count = 1
    while aside.exists():
        count += 1
        aside = path.with_name(f"{name}-{count}")
    # The file last: a log that stayed behind alone would be taken for that of the file made next.
    for suffix in ("-wal", "-shm", ""):
        part = path.with_name(path.name + suffix)
        if part.exists():
            part.rename(aside.with_name(aside.name + suffix))
    return aside


def _begin_stream(connection: sqlite3.Connection) -> None:
    if connection.execute("SELECT 1 FROM meta WHERE key = 'stream_id'").fetchone() is None:
        connection.execute("BEGIN IMMEDIATE")
        set_stream(connection, secrets.token_hex(8))
        connection.execute("COMMIT")
