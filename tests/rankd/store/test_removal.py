"""Files taken away from a running writer, or put back."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from history_rows import Look, Open, numbers

from rankd.store.errors import StoreInUse
from rankd.store.schema import FILE_NAME

pytestmark = pytest.mark.usefixtures("quick_retries")


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
