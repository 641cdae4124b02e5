"""Writes until it is killed, going on where the file ends, and says after each commit up to which number it came."""

from __future__ import annotations

import os
import random
import sqlite3
import sys
from pathlib import Path

from rankd.config import HistoryConfig
from rankd.records import Alert, Measurement
from rankd.store.entries import AlertEntry, Entry
from rankd.store.schema import FILE_NAME
from rankd.store.writer import Writer

data = Path(sys.argv[1])


def tell(entries: list[Entry | AlertEntry]) -> None:
    try:
        print(entries[-1].n, flush=True)
    except BrokenPipeError:  # who started this is gone; the writer would take it for a disk that fails
        os._exit(1)


writer = Writer(data, HistoryConfig(), tell, lambda error: None)
connection = sqlite3.connect(data / FILE_NAME)
n = connection.execute("SELECT coalesce(max(n), 0) FROM measurement").fetchone()[0]
connection.close()
writer.start()
while True:
    for _ in range(random.randrange(1, 300)):
        n += 1
        layer = f"layer-{n % 20}"
        metrics = {"stable_rank": float(n)}
        measurement = Measurement("r", layer, n, (4, 4), True, False, metrics, time=float(n), summary=b"s" * 500)
        alert = Alert(str(n), "r", layer, n, "info", "firing", "ema_drop", None, None, None, "", "", time=float(n))
        writer.submit(Entry(n, measurement, ((n, alert),), b"j" * 2000))
    writer.flush(10)
