import os
import sqlite3
import stat
from pathlib import Path

import pytest

from rankd.doctor import Finding, history
from rankd.doctor.history import check_history
from rankd.store.schema import FILE_NAME, migrate

ROOM = 10 << 30


def make(data: Path, num_runs: int = 2000) -> Path:
    """A history with some pages in it."""
    file = data / FILE_NAME
    connection = sqlite3.connect(file)
    connection.execute("PRAGMA journal_mode = WAL")
    migrate(connection)
    with connection:
        connection.executemany("INSERT INTO run (name) VALUES (?)", [(f"run-{i:060d}",) for i in range(num_runs)])
    connection.close()
    return file


def findings(data: Path, max_bytes: int = ROOM) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_history(data, max_bytes)}


def test_a_sound_history(tmp_path: Path) -> None:
    file = make(tmp_path)
    found = findings(tmp_path)
    assert list(found) == ["history_place", "history_room", "history", "history_content"]
    assert all(finding.ok for finding in found.values())
    assert str(file) in found["history"].text
    assert sorted(os.listdir(tmp_path))[0] == FILE_NAME and stat.S_ISREG(file.stat().st_mode)  # noqa: PTH208


def test_none_there(tmp_path: Path) -> None:
    assert not findings(tmp_path / "no")["history"].ok
    found = findings(tmp_path)["history"]
    assert not found.ok and "no history in" in found.text and "--data" in found.advice


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"x" * 8192)
    found = findings(tmp_path)["history"]
    assert not found.ok and "aside" in found.advice


def test_damage_in_the_midst_is_found(tmp_path: Path) -> None:
    file = make(tmp_path)
    content = bytearray(file.read_bytes())
    half = len(content) // 2
    content[half : half + 8192] = b"\xa5" * 8192
    file.write_bytes(content)
    found = findings(tmp_path)["history_content"]
    assert not found.ok and found.text.startswith("damaged: ")


def test_looking_ends_in_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(history, "CHECK_SECONDS", -1.0)
    monkeypatch.setattr(history, "CHECK_STEPS", 1)
    found = findings(tmp_path)["history_content"]
    assert found.ok and "not all was looked at" in found.text


def test_more_than_it_may_have(tmp_path: Path) -> None:
    make(tmp_path)
    found = findings(tmp_path, max_bytes=1000)["history_room"]
    assert not found.ok and "max_bytes" in found.advice


def test_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path)
    monkeypatch.setattr(history, "MIN_FREE_BYTES", 1 << 62)
    assert not findings(tmp_path)["history_room"].ok
