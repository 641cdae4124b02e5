"""What is kept of streams."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankd.archive import Archive
from rankd.config import Limits
from rankd.current import Current
from rankd.store.batch import KEPT_STREAMS
from rankd.store.entries import Entry
from rankd.store.reader import FORGOTTEN_STREAM
from rankd.streams import Streams

Look = Callable[..., list[Any]]
Open = Callable[..., Any]


def test_as_many_streams_are_kept_as_are_told_of(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    writer = open_writer()
    for n in range(1, KEPT_STREAMS + 21):
        writer.write(Entry(n, make.measurement("r", step=n), ((n, make.alert("r", alert_id=str(n))),)))
        writer.switch_stream(f"{n:016x}", {("measurement", "r"): n, ("alert", "r"): n})
    assert writer.flush(30)
    assert look("SELECT count(*), min(stream_id), max(stream_id) FROM stream") == [(100, f"{21:016x}", f"{120:016x}")]
    assert look("SELECT count(*), min(base) FROM base") == [(200, 21)]

    current = Current(Streams(f"{120:016x}"), Limits(), Counter())
    archive = Archive(data)
    archive.load(current.streams, current)
    archive.close()
    alerts = [(alert["stream_id"], alert["seq"]) for alert in current.firing("r")]
    assert alerts == [(FORGOTTEN_STREAM, n) for n in range(1, 22)] + [(f"{n - 1:016x}", 1) for n in range(22, 121)]
