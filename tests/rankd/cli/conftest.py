"""A history for the verbs that read one."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from rankd.config import HistoryConfig
from rankd.records import METRIC_NAMES, Alert, Measurement, Spectrum
from rankd.store.entries import AlertEntry, Entry
from rankd.store.writer import Writer
from rankd.summary import summarise

HOSTILE = "=1+1\x1b[2J,\r\n"
STEPS = (0, 7, 14, 21, 28, 14, 22)
"""Of both layers of lm-42, which goes back once."""


def measurement(run: str, layer: str, step: int, value: float | None = 1.5, role: str = "weight") -> Measurement:
    return Measurement(
        run,
        layer,
        step,
        shape=(4, 3, 2),
        finite=value is not None,
        zero=False,
        metrics=dict.fromkeys(METRIC_NAMES, value),
        role=role,
        method="gram",
        source_dtype="float32",
        wire_dtype="bfloat16",
        measure_seconds=0.125,
        time=time.time(),
        summary=summarise(Spectrum(4, 6, np.array([2.0, 1.0, 0.5, 0.25]), 1.0, "gram")) if step == 7 else b"",
        extra={"loss": 0.1 + 0.2} if step == 22 else {},
    )


def alert(run: str, layer: str | None, step: int | None, alert_id: str) -> Alert:
    known = ("warning", "firing", "zero", None, None, None, "fell", "look")
    return Alert(alert_id, run, layer, step, *known, time=time.time())


def entries() -> Iterable[Entry | AlertEntry]:
    n = 0
    for step in STEPS:
        for layer in ("blocks.0.w", HOSTILE):
            n += 1
            alerts = ((n // 2, alert("lm-42", layer, step, str(step))),) if n in (2, 4) else ()
            yield Entry(n, measurement("lm-42", layer, step, None if n == 5 else n + 0.1), alerts)
    yield Entry(1, measurement("@a/lm-42", "w", 1, role="update"))
    yield AlertEntry(1, alert("@daemon", None, None, "d"))


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data directory of a daemon that has ended."""
    data = tmp_path_factory.mktemp("history")
    writer = Writer(data, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    for entry in entries():
        writer.submit(entry)
    assert writer.flush(30)
    writer.switch_stream("5ec0" * 4, {("alert", "lm-42"): 2})
    writer.submit(AlertEntry(3, alert("lm-42", None, None, "whole")))
    assert writer.flush(30) and writer.close(30)
    return data
