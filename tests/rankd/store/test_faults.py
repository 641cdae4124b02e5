"""The disk fails, or the process is killed: nothing that was told as written is lost, nothing is written twice, and it
goes on by itself once the disk does."""

from __future__ import annotations

import os
import random
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from history_rows import Look, Open, numbers

from rankd.store import database, ledger
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.schema import FILE_NAME

pytestmark = pytest.mark.usefixtures("quick_retries")


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    try:
        yield
    finally:
        connection.close()


@contextmanager
def file_limit(num_bytes: int) -> Iterator[None]:
    """Files of this process may not grow beyond: how a full disk begins."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)


def test_a_log_that_nobody_can_empty_is_said(
    make: Any, open_writer: Open, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database, "LOG_PAGES", 5)
    monkeypatch.setattr("rankd.store.writer.CHORES_EVERY_ROWS", 1)
    writer = open_writer()
    writer.write(*make.entries(1))
    reader = sqlite3.connect(data / FILE_NAME, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM run").fetchall()
    assert writer.overgrown is None
    coming = iter(range(2, 1000))

    def write_until(is_said: bool) -> None:
        for n in coming:
            writer.write(*make.entries(1, first=n))
            if (writer.overgrown is not None) == is_said:
                return
        raise AssertionError(f"after 1000 commits: {writer.overgrown}")

    write_until(True)
    assert str(data / FILE_NAME) in str(writer.overgrown)
    reader.close()
    write_until(False)


def test_locked_file(make: Any, open_writer: Open, look: Look, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.store.database.BUSY_MILLISECONDS", 10)
    writer = open_writer()
    writer.write(*make.entries(3))
    writer._fail(StoreError("io", "a connection that waits less"))
    with exclusive(data / FILE_NAME):
        for entry in make.entries(5, first=4):
            writer.submit(entry)
        assert writer.told.wait_for_faults(2)[1] == "busy"
        assert writer.num_pending == 5
    assert writer.flush(30)
    assert writer.told.wait_for_faults(3)[-1] is None
    assert numbers(look) == list(range(1, 9))


def test_disk_that_fills_up(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    writer = open_writer()
    writer.write(*make.entries(200))
    log = data / f"{FILE_NAME}-wal"
    with file_limit(log.stat().st_size + 4096):
        for entry in make.entries(500, first=201):
            writer.submit(entry)
        assert writer.told.wait_for_faults(1)[0] in ("full", "io")
        assert writer.num_pending == 500
        assert len(writer.told.committed) == 200
    assert writer.flush(30)
    assert writer.told.wait_for_faults(2)[-1] is None
    assert numbers(look) == list(range(1, 701))
    assert look("PRAGMA integrity_check") == [("ok",)]


def test_full_database(make: Any, open_writer: Open, look: Look) -> None:
    """SQLITE_FULL, which it says of a database that may not grow as of a disk without room."""
    writer = open_writer()
    writer.write(*make.entries(10))
    pages = writer._home.ledger._connection.execute("PRAGMA page_count").fetchone()[0]
    writer._home.ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
    for entry in make.entries(3000, first=11):
        writer.submit(entry)
    assert writer.told.wait_for_faults(2)[:2] == ["full", None]  # the next connection knows nothing of the limit
    assert writer.flush(30)
    assert numbers(look) == list(range(1, 3011))


@pytest.mark.parametrize(("filled_with", "faults"), [("rows", "['full', None]"), ("log", "[]")])
def test_small_disk(tmp_path: Path, filled_with: str, faults: str) -> None:
    """A real one, of 3 MiB, where root may mount it: in a child with mounts of its own. A log that fills it is copied
    into the database and written from its beginning: no fault."""
    script = Path(__file__).with_name("full_disk.py")
    command = ["unshare", "--mount", sys.executable, str(script), str(tmp_path), filled_with]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip("not allowed to mount")
    assert (done.returncode, done.stdout) == (0, f"{faults} True\n"), done.stderr


def test_commit_of_unknown_outcome_is_not_doubled(
    make: Any, open_writer: Open, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk says that it failed after it had written."""
    commit = ledger.Ledger.commit
    fails = [True]

    def commit_and_fail(self: ledger.Ledger, *work: Any) -> int:
        num = commit(self, *work)
        if work[0] and fails:
            fails.clear()
            raise sqlite3.OperationalError("disk I/O error")
        return num

    monkeypatch.setattr(ledger.Ledger, "commit", commit_and_fail)
    running = open_writer()
    entries = [
        Entry(1, make.measurement(), ((1, make.alert()),), b"state"),
        AlertEntry(2, make.alert(alert_id="k")),
        *make.entries(3, run="other"),
    ]
    running.write(*entries)
    assert running.told.committed == entries
    assert running.told.wait_for_faults(2) == ["io", None]
    assert look("SELECT name, num_measurements, num_alerts FROM run") == [("r", 1, 2), ("other", 3, 0)]
    assert look("SELECT (SELECT count(*) FROM measurement), (SELECT count(*) FROM alert)") == [(4, 2)]
    assert look("SELECT sum(num_measurements) FROM layer") == [(4,)]


def test_closing_gives_up_in_time(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    running = open_writer()
    with exclusive(data / FILE_NAME):
        running.submit(make.entries(1)[0])
        assert not running.close(0.2)
        running._thread.join(30)
    assert numbers(look) == []


@pytest.mark.parametrize("seed", range(4))
def test_killed_while_it_writes(look: Look, data: Path, seed: int) -> None:
    """Twice, at a random moment: what was told as written is there, whole, and nothing by halves."""
    chance = random.Random(seed)
    told = 0
    for _ in range(2):
        command = [sys.executable, str(Path(__file__).with_name("endless_writer.py")), str(data)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            for _ in range(chance.randrange(1, 40)):
                line = child.stdout.readline()
                assert line, "the child ended by itself"
            os.kill(child.pid, signal.SIGKILL)
            lines = [line, *child.stdout.read().splitlines(keepends=True)]
            told = int([line for line in lines if line.endswith("\n")][-1])
        assert look("PRAGMA integrity_check") == [("ok",)]
        newest = look("SELECT num_measurements FROM run")[0][0]
        assert newest >= told
        assert numbers(look) == list(range(1, newest + 1))
        whole = "SELECT n FROM alert ORDER BY n", "SELECT n FROM spectrum ORDER BY n"
        assert [[n for (n,) in look(query)] for query in whole] == [list(range(1, newest + 1))] * 2
        assert look("SELECT sum(num_measurements) FROM layer") == [(newest,)]
        assert look("SELECT max(n) FROM judge") == [(newest,)]
