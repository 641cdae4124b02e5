"""Fills a disk of 3 MiB with rows, or with the log of a few, and says what its writer said: the faults, and whether all
is written."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

from rankd.config import HistoryConfig
from rankd.records import Measurement
from rankd.store import writer
from rankd.store.entries import Entry
from rankd.store.errors import StoreError

directory, filled_with = sys.argv[1:]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", directory], check=True)
ballast = Path(directory) / "ballast"
writer.FIRST_RETRY_SECONDS = writer.LAST_RETRY_SECONDS = 0.05
faults: list[str | None] = []
failed = threading.Event()


def on_fault(error: StoreError | None) -> None:
    faults.append(error and error.kind)
    failed.set()


def open_writer() -> writer.Writer:
    history = writer.Writer(Path(directory) / "data", HistoryConfig(), lambda entries: None, on_fault)
    history.start()
    return history


def fill_with_rows() -> writer.Writer:
    ballast.write_bytes(bytes(2800 << 10))
    history = open_writer()
    for n in range(1, 4001):
        measurement = Measurement("r", "a", n, (4, 4), True, False, {"stable_rank": 1.0}, time=1.0)
        history.submit(Entry(n, measurement))
    failed.wait(30)
    ballast.unlink()
    return history


def fill_with_log() -> writer.Writer:
    """One row again and again: the log of so many commits would be larger than the disk."""
    first = open_writer()
    first.superseded("r", "a", "weight")
    assert first.close(30)
    ballast.write_bytes(bytes(2 << 20))
    history = open_writer()
    for _ in range(500):
        history.superseded("r", "a", "weight")
        if not history.flush(1):
            break
    return history


history = {"rows": fill_with_rows, "log": fill_with_log}[filled_with]()
flushed = history.flush(10)
closed = history.close(10)
print(faults, flushed and closed)
