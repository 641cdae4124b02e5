"""Detectors that come back from a history whose older rows are gone are those that never went away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.detectors import DEFAULT_CONFIG
from rankd.judge import RunJudges, recall_judge
from rankd.store import folding, removal
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.retention import ClockTrust, Retention

Open = Callable[..., Any]
LAYERS = [f"layer {index}" for index in range(24)]
SLOW = "slow"


def due_layers(check: int) -> list[str]:
    return [*LAYERS, SLOW] if check % 50 == 0 else LAYERS


def metrics(chance: Random, layer: str, check: int) -> dict[str, float]:
    """Each layer falls at a time of its own, and some recover."""
    falls_at = 15 + 7 * (len(layer) + hash_of(layer)) % 70
    fallen = falls_at <= check < falls_at + 30
    rank = 300.0 * (0.6 if fallen else 1.0) * chance.uniform(0.999, 1.001)
    return {"effective_rank": rank, "stable_rank": rank / 10, "spectral_norm": 3.0 * (1.5 if fallen else 1.0)}


def hash_of(layer: str) -> int:
    return sum(map(ord, layer))


class Live:
    """A daemon's detectors with what they have recorded."""

    def __init__(self, make: Any, writer: Any, seed: int) -> None:
        self._make, self._writer, self._chance = make, writer, Random(seed)
        self.judges = RunJudges()
        self._n = self._num_alerts = 0
        self.num_fired = 0

    def check(self, check: int) -> None:
        entries = []
        for layer in due_layers(check):
            self._n += 1
            values = metrics(self._chance, layer, check)
            measurement = self._make.measurement("r", layer, 10 * check, metrics=values, time=1000.0 + check)
            numbered = []
            for alert in self.judges.update(measurement):
                self._num_alerts += 1
                numbered.append((self._num_alerts, alert))
                self.num_fired += alert.state == "firing"
            entries.append(Entry(self._n, measurement, tuple(numbered), self.judges.due("r", layer, "weight")))
        self._writer.write(*entries)


def forget_rows(writer: Any, quota_bytes: int, num_slices: int) -> None:
    quotas = {"": quota_bytes}
    connection = writer._home.ledger._connection
    work = Retention(connection, HistoryConfig(), ClockTrust(0.0, 0.0), lambda: 0.0, lambda: 0.0, lambda: quotas)
    for _ in range(num_slices):
        if not work.step():
            break
    writer._home.ledger._ids.forget()


@pytest.mark.parametrize(("seed", "max_folded"), [(0, 5), (1, 64)])
def test_restart_changes_nothing_whatever_was_deleted(
    make: Any, open_writer: Open, data: Path, monkeypatch: pytest.MonkeyPatch, seed: int, max_folded: int
) -> None:
    monkeypatch.setattr(removal, "SLICE_ROWS", 40)
    monkeypatch.setattr(folding, "MAX_FOLDED", max_folded)
    writer, chance = open_writer(), Random(seed)
    live = Live(make, writer, seed)
    held = set()
    for check in range(120):
        live.check(check)
        if chance.random() < 0.3:
            forget_rows(writer, chance.choice((1, 50_000, 200_000)), chance.randrange(1, 20))
        if chance.random() < 0.2 or check == 119:
            with Reader(data) as reader:
                held.add(len(list(reader.measurements("r"))))
                for layer in (*LAYERS, SLOW):
                    back = recall_judge("r", layer, "weight", DEFAULT_CONFIG, lambda *key, **_: reader.judge(*key))
                    assert back.state() == live.judges.state("r", layer, "weight"), (check, layer)
                    back_firing = {alert.alert_id for alert in back.firing}
                    assert back_firing == {a["alert_id"] for _, _, a in reader.firing() if a["layer"] == layer}
    assert live.num_fired > len(LAYERS)
    assert min(held) < 10 * len(LAYERS) < max(held)


def test_state_that_cannot_be_read_goes_and_keeps_no_row(make: Any, open_writer: Open, data: Path) -> None:
    writer = open_writer()
    first, *others = make.entries(60)
    writer.write(Entry(first.n, first.measurement, (), b"of another version"), *others)
    forget_rows(writer, 1, 1000)
    with Reader(data) as reader:
        assert list(reader.measurements("r")) == []
        assert reader.judge("r", first.measurement.layer, "weight") == (None, [])
