import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from rankd.store import opening
from rankd.store.errors import StoreError
from rankd.store.reader import Reader
from rankd.store.schema import FILE_NAME, VERSION

NOBODY = 65534


def other_database(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE run (x)")
    connection.close()


def newer_history(file: Path) -> None:
    connection = sqlite3.connect(file)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()


@pytest.mark.parametrize(
    ("make_file", "kind", "words"),
    [
        (lambda file: None, "missing", "expected history.db, which `rankd serve --data` makes"),
        (lambda file: file.write_bytes(b""), "damaged", "no history of rankd"),
        (lambda file: file.write_bytes(b"not a database, " * 100), "damaged", "the file is damaged"),
        (lambda file: file.mkdir(), "io", "history.db"),
        (other_database, "damaged", "no history of rankd"),
        (newer_history, "version", f"its version is {VERSION + 1}; this rankd reads up to {VERSION}"),
    ],
)
def test_what_is_no_history_is_named(
    tmp_path: Path, make_file: Callable[[Path], object], kind: str, words: str
) -> None:
    make_file(tmp_path / FILE_NAME)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(StoreError) as caught:
        Reader(tmp_path)
    assert caught.value.kind == kind and words in str(caught.value) and str(tmp_path) in str(caught.value)
    assert sorted(tmp_path.iterdir()) == before  # nothing was made


def test_locked_by_another(make: Any, open_writer: Any, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = open_writer()
    writer.write(*make.entries(1))
    writer.close(30)
    holder = sqlite3.connect(data / FILE_NAME, isolation_level=None)
    holder.execute("PRAGMA locking_mode = EXCLUSIVE")
    holder.execute("BEGIN EXCLUSIVE")
    monkeypatch.setattr(opening, "BUSY_SECONDS", 0.01)
    with pytest.raises(StoreError) as caught:
        Reader(data)
    assert caught.value.kind == "busy"
    holder.close()
    with Reader(data) as reader:
        assert len(reader.runs()) == 1


def test_nothing_can_be_written_through_it(make: Any, open_writer: Any, data: Path) -> None:
    open_writer().write(*make.entries(1))
    with Reader(data) as reader, pytest.raises(StoreError, match="readonly"):
        reader.rows("DELETE FROM run")


@pytest.fixture
def directory(make: Any, open_writer: Any, data: Path) -> Iterator[Path]:
    """A directory that any user may read, with a history of five rows and, as "log", its -wal before it was emptied."""
    with tempfile.TemporaryDirectory(prefix="rankd-") as name:
        directory = Path(name)
        writer = open_writer()
        writer.write(*make.entries(5))
        shutil.copy(data / f"{FILE_NAME}-wal", directory / "log")
        writer.close(30)
        shutil.copy(data / FILE_NAME, directory)
        for file in directory.iterdir():
            file.chmod(0o444)
        yield directory
        directory.chmod(0o755)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Root may write anywhere, and is nobody meanwhile."""
    directory.chmod(0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(user)


def test_a_directory_that_is_read_only(directory: Path) -> None:
    with read_only(directory), Reader(directory) as reader:
        assert [n for n, _ in reader.measurements("r")] == [1, 2, 3, 4, 5]
    assert {file.name for file in directory.iterdir()} == {FILE_NAME, "log"}


def test_rows_in_a_log_that_cannot_be_read_are_not_passed_over(directory: Path) -> None:
    (directory / "log").rename(directory / f"{FILE_NAME}-wal")
    with read_only(directory), pytest.raises(StoreError, match="its newest rows are in history"):
        Reader(directory)
