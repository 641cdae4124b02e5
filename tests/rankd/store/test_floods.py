"""Bounds of the file hold whatever is pushed, and who floods the history pays for it himself."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.store import removal
from rankd.store.database import used_bytes
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.retention import ClockTrust, Retention

Look = Callable[..., list[Any]]
Open = Callable[..., Any]
MAX_BYTES = 1 << 20
OVERHEAD_BYTES = 200_000
"""Empty tables, and what is not deleted of so few layers."""


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "SLICE_ROWS", 200)


def flood(make: Any, run: str, first: int, num: int) -> Iterator[Entry]:
    """Weights that are zero each second time, of a data type and a shape that were never heard of."""
    for n in range(first, first + num):
        kind = {"shape": (n, 3), "source_dtype": f"{n:032}"}
        state = "firing" if n % 2 else "resolved"
        alert = make.alert(run, "x", f"{run} {(n - 1) // 2}", state=state, rule="zero", message="m" * 200)
        yield Entry(n, make.measurement(run, "x", n, zero=n % 2 == 1, **kind), ((n, alert),))


def retained(writer: Any, max_bytes: int = MAX_BYTES, quotas: Mapping[str, int] | None = None) -> None:
    connection = writer._home.ledger._connection
    config, trust = HistoryConfig(max_bytes=max_bytes), ClockTrust(0.0, 0.0)
    work = Retention(connection, config, trust, lambda: 0.0, lambda: 0.0, None if quotas is None else lambda: quotas)
    for _ in range(2000):
        if not work.step():
            writer._home.ledger._ids.forget()
            return
    raise AssertionError("it never ends")


def num_rows(look: Look) -> dict[str, int]:
    return dict(look("SELECT name, count(*) FROM measurement JOIN run USING (run_id) GROUP BY name"))


@pytest.mark.parametrize(("honest", "hostile"), [("lm", "@x/flood"), ("@team/lm", "@x/flood"), ("lm", "flood")])
def test_flood_of_alerts_and_kinds(
    make: Any, open_writer: Open, look: Look, data: Path, honest: str, hostile: str
) -> None:
    writer = open_writer()
    writer.write(*make.entries(1500, honest), Entry(1501, make.measurement(honest), ((1, make.alert(honest)),)))
    for first in range(1, 8000, 2000):
        writer.write(*flood(make, hostile, first, 2000))
        retained(writer)
        total_bytes, _ = used_bytes(writer._home.ledger._connection)
        assert total_bytes <= MAX_BYTES + OVERHEAD_BYTES
        assert num_rows(look)[honest] == 1501
    assert look("SELECT count(*) FROM alert JOIN run USING (run_id) WHERE name = ?", honest) == [(1,)]
    num_kinds, num_flooded = look("SELECT count(*) FROM kind")[0][0], num_rows(look)[hostile]
    assert 0 < num_flooded < 2000 and num_kinds <= num_flooded + 2
    with Reader(data) as reader:
        assert len(list(reader.measurements(honest))) == 1501
        numbers = [n for n, _ in reader.alerts(hostile)]
        assert numbers == list(range(reader.first_n("alert", hostile), 8001))  # no holes
    assert look("PRAGMA integrity_check") == [("ok",)]


def test_namespace_pays_for_its_own_rows_alone(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    layers = tuple(f"layer {index}" for index in range(100))
    team = make.entries(2000, "@team/lm", layers)
    writer.write(*(Entry(entry.n, entry.measurement, (), bytes(20_000)) for entry in team))
    writer.write(*flood(make, "@x/flood", 1, 1000))
    retained(writer, 1 << 30, {"team": 1 << 18, "x": 1 << 30})
    assert num_rows(look) == {"@team/lm": 2000, "@x/flood": 1000}
    retained(writer, 1 << 30, {"team": 1 << 17, "x": 1 << 17})
    rows = num_rows(look)
    assert 900 < rows["@team/lm"] < 1100 and 0 < rows["@x/flood"] < 500


def test_what_layers_remember_takes_no_measurements_away(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    layers = tuple(f"layer {index}" for index in range(100))
    writer.write(*(Entry(e.n, e.measurement, (), bytes(20_000)) for e in make.entries(6000, "lm", layers)))
    retained(writer)
    assert MAX_BYTES * 0.4 < 120 * num_rows(look)["lm"] < MAX_BYTES * 0.6


def test_alert_that_is_on_outlives_its_event(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    writer = open_writer()
    entries = list(flood(make, "r", 1, 1001))
    writer.write(*(Entry(e.n, e.measurement, tuple((n, a) for n, a in e.alerts if n != 2)) for e in entries))
    retained(writer, 1 << 30, {"": 100_000})
    with Reader(data) as reader:
        assert reader.first_n("alert", "r") > 500
        assert [(run, n, alert["alert_id"]) for run, n, alert in reader.firing()] == [
            ("r", 1, "r 0"),
            ("r", 1001, "r 500"),
        ]


def test_what_nobody_counts_is_at_nobody_elses_expense(make: Any, open_writer: Open, look: Look) -> None:
    """Names and detectors of thousands of layers fill the file: a run of another namespace that has ended was deleted
    for them."""
    writer = open_writer()
    ended = make.entries(600, "@a/old")
    names = tuple(f"{number}-" + "x" * 900 for number in range(600))
    hostile = [
        Entry(n, make.measurement("@m/live", name, 1, time=20_000.0), (), bytes(2000))
        for n, name in enumerate(names, 1)
    ]
    writer.write(*ended, *hostile)
    retained(writer)
    assert num_rows(look) == {"@a/old": 600, "@m/live": 600}


def test_no_more_goes_than_is_too_much(make: Any, open_writer: Open, look: Look, monkeypatch: Any) -> None:
    """A slice of 2,000 rows emptied a namespace of a small quota."""
    monkeypatch.setattr(removal, "SLICE_ROWS", 2000)
    writer = open_writer()
    writer.write(*make.entries(3000, "@q/r"))
    (used,) = look("SELECT measurement_bytes FROM run")[0]
    retained(writer, 100 << 20, {"q": used // 3})
    assert 0.9 * 1000 <= num_rows(look)["@q/r"] <= 1000
    assert look("SELECT max(n) FROM measurement") == [(3000,)]
