"""Fills a disk of 3 MiB, makes room on it, and says what its writer said: the faults, and whether all is written."""

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

directory = sys.argv[1]
subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", directory], check=True)
ballast = Path(directory) / "ballast"
ballast.write_bytes(bytes(2800 << 10))
writer.FIRST_RETRY_SECONDS = writer.LAST_RETRY_SECONDS = 0.05
faults: list[str | None] = []
failed = threading.Event()


def on_fault(error: StoreError | None) -> None:
    faults.append(error and error.kind)
    failed.set()


history = writer.Writer(Path(directory) / "data", HistoryConfig(), lambda entries: None, on_fault)
history.start()
for n in range(1, 4001):
    measurement = Measurement("r", "a", n, (4, 4), True, False, {"stable_rank": 1.0}, time=1.0)
    history.submit(Entry(n, measurement))
failed.wait(30)
ballast.unlink()
flushed = history.flush(30)
closed = history.close(30)
print(faults, flushed and closed)
