"""A file that is no history any more is put aside, whether it is found so or becomes so."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from history_rows import Look, Open, numbers

from rankd.store.schema import FILE_NAME

pytestmark = pytest.mark.usefixtures("quick_retries")


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
