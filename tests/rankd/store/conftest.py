"""What the tests of the history share: measurements and alerts to write, and a writer whose callbacks are kept."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.records import Alert, Measurement
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.schema import FILE_NAME
from rankd.store.writer import Writer

TIMEOUT_SECONDS = 30.0
METRICS = {
    "stable_rank": 10.5,
    "effective_rank": 300.25,
    "effective_rank_energy": 100.125,
    "spectral_norm": 3.0,
    "frobenius_norm": 9.75,
    "participation_ratio": 50.5,
}


class Make:
    """Records with everything that is not named filled in."""

    @staticmethod
    def measurement(run: str = "r", layer: str = "a", step: int | None = 1, **more: Any) -> Measurement:
        values = {"shape": (4, 3), "finite": True, "zero": False, "metrics": METRICS, "time": 1000.0, **more}
        return Measurement(run, layer, step, **values)

    @staticmethod
    def alert(run: str = "r", layer: str | None = "a", alert_id: str = "i", **more: Any) -> Alert:
        values = {"step": 1, "severity": "warning", "state": "firing", "rule": "effective_rank_drop", "time": 1000.0}
        about = {"metric": "effective_rank", "value": 1.0, "baseline": 2.0, "message": "fell", "advice": "look"}
        return Alert(alert_id, run, layer, **{**values, **about, **more})

    @classmethod
    def entries(cls, num: int, run: str = "r", layers: tuple[str, ...] = ("a", "b"), first: int = 1) -> list[Entry]:
        """Numbers `first` on; each layer in turn, a step later each round."""
        return [
            Entry(n, cls.measurement(run, layers[n % len(layers)], n // len(layers), time=1000.0 + n))
            for n in range(first, first + num)
        ]


@dataclass
class Told:
    """What a writer said. `fault` is set with each on_fault."""

    committed: list[Entry | AlertEntry] = field(default_factory=list)
    faults: list[StoreError | None] = field(default_factory=list)
    changed: threading.Condition = field(default_factory=threading.Condition)

    def commit(self, entries: list[Entry | AlertEntry]) -> None:
        self.committed += entries

    def fault(self, error: StoreError | None) -> None:
        with self.changed:
            self.faults.append(error)
            self.changed.notify_all()

    def wait_for_faults(self, num: int) -> list[str | None]:
        """Their kinds, once there are `num` or more."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.faults) >= num, TIMEOUT_SECONDS), self.faults
        return [fault and fault.kind for fault in self.faults]


class Writing(Writer):
    """A writer with what it told, and calls that do not wait forever."""

    told: Told

    def write(self, *entries: Entry | AlertEntry) -> None:
        for entry in entries:
            assert self.submit(entry) == []
        assert self.flush(TIMEOUT_SECONDS)


@pytest.fixture
def make() -> type[Make]:
    return Make


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def open_writer(data: Path) -> Iterator[Callable[..., Writing]]:
    """Starts writers of `data`; those still open are closed at the end."""
    opened: list[Writing] = []

    def start(config: HistoryConfig | None = None, **more: Any) -> Writing:
        told = Told()
        writer = Writing(data, config or HistoryConfig(), told.commit, told.fault, **more)
        writer.told = told
        writer.start()
        opened.append(writer)
        return writer

    yield start
    for writer in opened:
        if writer._close_by is None:
            writer.close(TIMEOUT_SECONDS)


@pytest.fixture
def quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.store.writer.FIRST_RETRY_SECONDS", 0.05)
    monkeypatch.setattr("rankd.store.writer.LAST_RETRY_SECONDS", 0.1)


@pytest.fixture
def look(data: Path) -> Callable[..., list[Any]]:
    """Rows that a query gives on the file, over a connection of its own."""

    def rows(query: str, *values: object, path: Path = data / FILE_NAME) -> list[Any]:
        with connected(path) as connection:
            return connection.execute(query, values).fetchall()

    return rows


@contextmanager
def connected(path: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()
