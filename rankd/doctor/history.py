"""The history on disk: its place, its room, and whether it can be read. Never written to; a daemon may be running."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

from rankd.doctor.finding import Finding, ok, problem
from rankd.store.errors import FAILURES, StoreError
from rankd.store.opening import open_to_read
from rankd.store.place import refused
from rankd.store.schema import FILE_NAME, VERSION

MIN_FREE_BYTES = 1 << 30
CHECK_SECONDS = 10.0
CHECK_STEPS = 10_000
"""Instructions of SQLite between two looks at the clock: some milliseconds."""

GIB = 1 << 30


def check_history(data: Path, max_bytes: int) -> Iterator[Finding]:
    """`max_bytes`: what [history] allows the database."""
    place = data.resolve()
    if not place.is_dir():
        yield problem("history", f"{place} is no directory", "name the one that `rankd serve --data` was given")
        return
    yield _check_place(place)
    yield _check_room(place, max_bytes)
    try:
        connection = open_to_read(place)
    except StoreError as error:
        advice = {
            "missing": "name the directory that `rankd serve --data` was given",
            "damaged": "the daemon puts it aside at its next start and begins a new one",
            "version": "use the rankd that wrote it, or a newer one",
        }
        yield problem("history", str(error), advice.get(error.kind, "look at the disk and at who may read the file"))
        return
    with contextlib.closing(connection):
        yield ok("history", f"{place / FILE_NAME} can be read, schema version {VERSION}")
        yield _check_content(connection, time.monotonic() + CHECK_SECONDS)


def _check_place(place: Path) -> Finding:
    try:
        mountinfo = Path("/proc/self/mountinfo").read_text(errors="surrogateescape")
    except OSError:
        mountinfo = ""
    if reason := refused(place, mountinfo):
        return problem("history_place", reason, "move it to a disk of this host; `rankd export` copies runs elsewhere")
    return ok("history_place", f"{place} is on a disk of this host")


def _check_room(place: Path, max_bytes: int) -> Finding:
    system = os.statvfs(place)
    free_bytes = system.f_bavail * system.f_frsize
    used_bytes = sum(path.stat().st_size for path in place.glob(f"{FILE_NAME}*") if path.is_file())
    text = f"{used_bytes / GIB:.2f} GiB of at most {max_bytes / GIB:.2f}, {free_bytes / GIB:.2f} GiB free on the disk"
    if free_bytes < MIN_FREE_BYTES:
        return problem("history_room", text, "free some room: when the disk is full, alerts go on without the history")
    if used_bytes > 1.1 * max_bytes:
        return problem(
            "history_room", text, "it should have been shortened: look at the daemon's log, or raise max_bytes"
        )
    return ok("history_room", text)


def _check_content(connection: sqlite3.Connection, deadline: float) -> Finding:
    """`deadline` is monotonic; a large file is not read to its end."""
    connection.set_progress_handler(lambda: time.monotonic() > deadline, CHECK_STEPS)
    began = time.monotonic()
    try:
        (first, *_) = connection.execute("PRAGMA quick_check(3)").fetchone()
    except FAILURES as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_INTERRUPT:
            return ok(
                "history_content", f"no damage found within {time.monotonic() - began:.0f} s; not all was looked at"
            )
        first = str(error)
    if first == "ok":
        return ok("history_content", f"no damage found in {time.monotonic() - began:.2f} s")
    advice = "the daemon puts it aside once it meets the damage and begins a new one; look at the disk"
    return problem("history_content", f"damaged: {str(first)[:300]}", advice)
