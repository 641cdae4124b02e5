"""The disk fails in every way there is: nothing that was told as written is lost, nothing is written twice, and it goes
on by itself once the disk does."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rankd.store import ledger, writer
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError, StoreInUse
from rankd.store.schema import FILE_NAME

Look = Callable[..., list[Any]]
Open = Callable[..., Any]


@pytest.fixture(autouse=True)
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr(writer, "LAST_RETRY_SECONDS", 0.1)


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


def numbers(look: Look) -> list[int]:
    return [n for (n,) in look("SELECT n FROM measurement ORDER BY n")]


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


@pytest.mark.parametrize(
    ("when", "damage"),
    [
        ("at start", "header"),
        ("at start", "truncated"),
        ("at start", "no database"),
        ("at start", "noise"),
        ("while running", "noise"),
        ("while running", "truncated"),
        ("while running", "no database"),
    ],
)
def test_damaged_file(make: Any, open_writer: Open, look: Look, data: Path, damage: str, when: str) -> None:
    first = open_writer()
    first.write(*make.entries(3000))
    first.close(30)
    path = data / FILE_NAME
    if when == "while running":
        running = open_writer(clock=lambda: 1.0)
        running.flush(30)
    spoil(path, damage)
    if when != "while running":
        running = open_writer(clock=lambda: 1.0)
    running.write(*make.entries(3000, first=3001))
    aside = running.moved_aside
    assert aside is not None and aside.name == f"{FILE_NAME}.damaged-19700101T000001"
    assert aside.exists()
    assert numbers(look) == list(range(3001, 6001))
    assert look("SELECT num_measurements FROM run") == [(6000,)]
    assert look("SELECT value FROM meta WHERE key = 'stream_id'") != [(first.stream_id,)]
    assert look("PRAGMA integrity_check") == [("ok",)]
    if when == "at start":
        assert running.told.faults == []
    else:
        assert running.told.wait_for_faults(2) == ["damaged", None]
        assert aside.name in str(running.told.faults[0])


def spoil(path: Path, damage: str) -> None:
    """In place: a running writer has the file open."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        if damage == "noise":
            noise = random.Random(0)
            for page in range(1, size // 4096):
                file.seek(4096 * page)
                file.write(noise.randbytes(4096))
        elif damage == "header":
            file.write(b"\xff" * 100)
        elif damage == "truncated":
            file.truncate(4096 * 3)
        else:
            file.truncate(0)
            file.write(b"Dear diary, today I was put in place of a database. " * 200)


def test_second_damaged_file_of_a_second_has_its_own_name(open_writer: Open, data: Path) -> None:
    for count in range(2):
        data.mkdir(mode=0o700, exist_ok=True)
        (data / FILE_NAME).write_bytes(b"no database" * 1000)
        writer = open_writer(clock=lambda: 1.0)
        suffix = "" if count == 0 else "-2"
        assert writer.moved_aside is not None
        assert writer.moved_aside.name == f"{FILE_NAME}.damaged-19700101T000001{suffix}"
        writer.close(30)


def test_file_that_is_taken_away(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    running = open_writer()
    running.write(*make.entries(3))
    for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"):
        (data / name).unlink()
    running.write(*make.entries(2, first=4))
    assert running.told.wait_for_faults(2) == ["gone", None]
    assert running.told.faults[0].begun_anew
    assert numbers(look) == [4, 5]


def test_directory_that_is_taken_away(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    running = open_writer()
    running.write(*make.entries(3))
    data.rename(data.with_name("elsewhere"))
    running.write(*make.entries(2, first=4))
    assert running.told.wait_for_faults(2) == ["gone", None]
    assert numbers(look) == [4, 5]
    assert [n for (n,) in look("SELECT n FROM measurement", path=data.with_name("elsewhere") / FILE_NAME)] == [1, 2, 3]
    with pytest.raises(StoreInUse):
        open_writer()


@pytest.mark.parametrize("names", [("-wal",), ("-shm",), ("-wal", "-shm")])
def test_log_that_is_taken_away(make: Any, open_writer: Open, look: Look, data: Path, names: tuple[str, ...]) -> None:
    """It is still open: nothing is lost, not by who is killed afterwards either."""
    running = open_writer()
    running.write(*make.entries(300))
    for name in names:
        (data / f"{FILE_NAME}{name}").unlink()
    running.write(*make.entries(2, first=301))
    assert running.told.wait_for_faults(2) == ["io", None]
    assert "what it held is in the database" in str(running.told.faults[0])
    assert not running.told.faults[0].begun_anew
    copy = data.with_name("copy")  # what a crash would leave
    shutil.copytree(data, copy)
    assert [n for (n,) in look("SELECT n FROM measurement ORDER BY n", path=copy / FILE_NAME)] == list(range(1, 303))
    assert numbers(look) == list(range(1, 303))
    assert look("PRAGMA integrity_check") == [("ok",)]


def test_former_log_that_is_put_back(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    """Its pages are older than those of the file: they must not be taken for the newest."""
    running = open_writer()
    running.write(*make.entries(300))
    log = data / f"{FILE_NAME}-wal"
    former = log.read_bytes()
    running.write(*make.entries(300, first=301))
    log.unlink()
    log.write_bytes(former)
    running.write(*make.entries(2, first=601))
    assert running.told.wait_for_faults(2) == ["io", None]
    assert numbers(look) == list(range(1, 603))
    assert look("PRAGMA integrity_check") == [("ok",)]


def test_removed_lock_is_taken_again(make: Any, open_writer: Open, data: Path) -> None:
    running = open_writer()
    (data / "lock").unlink()
    running.write(*make.entries(1))
    with pytest.raises(StoreInUse):
        open_writer()
    assert running.told.faults == []


def test_second_writer_behind_a_removed_lock(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    """The first is fenced off: rows of the second are never taken for its own."""
    first = open_writer()
    first.write(*make.entries(3))
    (data / "lock").unlink()
    second = open_writer()
    second.write(*make.entries(3, run="r", layers=("second",), first=4))
    for entry in make.entries(3, first=4):
        first.submit(entry)
    assert first.told.wait_for_faults(1) == ["busy"]
    assert second.close(30)
    assert not first.flush(0.5)
    assert len(first.told.committed) == 3 and first.num_pending == 3
    query = "SELECT n, name FROM measurement JOIN layer USING (layer_id) WHERE n > 3 ORDER BY n"
    assert look(query) == [(4, "second"), (5, "second"), (6, "second")]
    assert "a daemon uses it" in str(first.told.faults[0])
    first.close(0.1)


def test_mark_of_another_writer(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    """Whatever became of the lock."""
    running = open_writer()
    running.write(*make.entries(3))
    look("INSERT OR REPLACE INTO meta VALUES ('writer', 'another')")
    for entry in make.entries(1, first=4):
        running.submit(entry)
    assert running.told.wait_for_faults(1) == ["busy"]
    assert "another daemon writes this history" in str(running.told.faults[0])
    assert running.num_pending == 1 and numbers(look) == [1, 2, 3]
    running.close(0.1)
    restarted = open_writer()
    restarted.write(*make.entries(1, first=4))
    assert numbers(look) == [1, 2, 3, 4]


def test_another_history_in_its_place(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    """Its numbers are not ours: it is left alone until a restart."""
    former = open_writer()
    former.write(*make.entries(10, layers=("former",)))
    former.close(30)
    copy = (data / FILE_NAME).read_bytes()
    (data / FILE_NAME).unlink()
    running = open_writer()
    running.write(*make.entries(3))
    for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"):
        (data / name).unlink()
    (data / FILE_NAME).write_bytes(copy)
    for entry in make.entries(2, first=4):
        running.submit(entry)
    assert running.told.wait_for_faults(2) == ["gone", "busy"]
    assert running.num_pending == 2
    assert look("SELECT count(*), max(name) FROM measurement JOIN layer USING (layer_id)") == [(10, "former")]
    running.close(0.1)


def test_database_of_another_program_in_its_place(make: Any, open_writer: Open, data: Path) -> None:
    running = open_writer()
    running.write(*make.entries(3))
    for name in (FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm"):
        (data / name).unlink()
    connection = sqlite3.connect(data / FILE_NAME)
    connection.execute("CREATE TABLE precious (value)")
    connection.close()
    running.submit(make.entries(1, first=4)[0])
    assert running.told.wait_for_faults(2) == ["gone", "io"]
    assert "another program" in str(running.told.faults[1])
    (data / FILE_NAME).unlink()
    assert running.flush(30)
    assert running.told.wait_for_faults(3)[-1] is None


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
