"""Damage as disks do it: bytes of a history that are others than those that were written."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

from rankd.store.schema import FILE_NAME

Damage = Callable[[Path], None]


def page_of(table: str) -> Damage:
    """The first page of a table is noise."""

    def damage(data: Path) -> None:
        connection = sqlite3.connect(data / FILE_NAME)
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
        connection.close()
        with (data / FILE_NAME).open("r+b") as file:
            file.seek(4096 * (page - 1))
            file.write(random.Random(0).randbytes(4096))

    return damage


def text(old: bytes, new: bytes) -> Damage:
    """Bytes of some values are others, wherever they stand."""
    assert len(old) == len(new)

    def damage(data: Path) -> None:
        file = data / FILE_NAME
        content = file.read_bytes()
        assert old in content
        with file.open("r+b") as opened:  # in place: a daemon may have it open
            opened.write(content.replace(old, new))

    return damage
