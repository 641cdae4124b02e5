"""Another writer, or a file of somebody else, where the own one was."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import pytest
from history_rows import Look, Open, numbers

from rankd.store.errors import StoreInUse
from rankd.store.schema import FILE_NAME

pytestmark = pytest.mark.usefixtures("quick_retries")


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
