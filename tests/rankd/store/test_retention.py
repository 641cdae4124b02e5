"""What is forgotten, in which order, and what never is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.store import measured, removal, retention
from rankd.store.database import used_bytes
from rankd.store.entries import AlertEntry, Entry
from rankd.store.reader import Reader
from rankd.store.retention import ClockTrust, Retention, _owner

Look = Callable[..., list[Any]]
Open = Callable[..., Any]
DAY_SECONDS = 86_400.0


@pytest.fixture(autouse=True)
def small_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(removal, "SLICE_ROWS", 10)


def filled(make: Any, writer: Any, run: str, times: list[float], summary: bytes = b"") -> None:
    """A measurement at each time, the first with an alert and a state of the detectors."""
    entries = [Entry(n, make.measurement(run, "a", n, time=time, summary=summary)) for n, time in enumerate(times, 1)]
    first = entries[0]
    alert = make.alert(run, alert_id=run, time=times[0])
    writer.write(Entry(1, first.measurement, ((1, alert),), b"state"), *entries[1:])


def retained(writer: Any, config: HistoryConfig, now: float, quotas: Mapping[str, int] | None = None) -> int:
    """Number of slices after which nothing is left to delete, with a clock that is believed."""
    hours_seconds = 2 * retention.STEADY_SECONDS
    watch = ClockTrust(now - hours_seconds, 0.0)
    asked = None if quotas is None else lambda: quotas
    work = Retention(writer._home.ledger._connection, config, watch, lambda: now, lambda: hours_seconds, asked)
    num = 0
    while work.step():
        num += 1
        assert num < 1000
    return num


def left(look: Look) -> dict[str, tuple[int, int]]:
    """Run → numbers of its first and last measurement that are left."""
    query = "SELECT name, min(n), max(n) FROM measurement JOIN run USING (run_id) GROUP BY name"
    return {name: (first, last) for name, first, last in look(query)}


def test_rows_that_are_too_old(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    filled(make, writer, "r", [n * DAY_SECONDS for n in range(100)], b"spectrum")
    assert retained(writer, HistoryConfig(max_age_days=30), 99.5 * DAY_SECONDS)
    assert left(look) == {"r": (71, 100)}
    assert look("SELECT min(n) FROM spectrum") == [(71,)]
    assert look("SELECT first_time, num_measurements FROM run") == [(70 * DAY_SECONDS, 100)]
    assert look("SELECT count(*) FROM alert") == [(1,)]


def test_run_that_is_too_old_goes_with_its_alerts_but_keeps_its_numbers(
    make: Any, open_writer: Open, look: Look
) -> None:
    writer = open_writer()
    filled(make, writer, "old", [float(n) for n in range(25)])
    filled(make, writer, "new", [100 * DAY_SECONDS])
    retained(writer, HistoryConfig(max_age_days=30), 101 * DAY_SECONDS)
    assert left(look) == {"new": (1, 1)}
    for table in ("alert", "firing", "judge", "layer"):
        assert look(f"SELECT count(*) FROM {table}") == [(1,)], table
    columns = "name, first_time, last_time, last_step, num_measurements, num_alerts"
    assert look(f"SELECT {columns} FROM run WHERE name = 'old'") == [("old", None, None, None, 25, 1)]
    writer._home.ledger._ids.forget()
    writer.write(Entry(26, make.measurement("old", "a", 26, time=101 * DAY_SECONDS)))
    assert writer.close(30)
    assert left(look)["old"] == (26, 26)
    assert look("SELECT sum(num) FROM rollup JOIN run USING (run_id) WHERE name = 'old'") == [(1,)]


@pytest.mark.parametrize("restarted", [False, True])
def test_who_reads_a_run_that_is_deleted_meanwhile_sees_no_other(
    make: Any, open_writer: Open, data: Path, look: Look, monkeypatch: pytest.MonkeyPatch, restarted: bool
) -> None:
    monkeypatch.setattr(measured, "SLICE", 10)
    writer = open_writer()
    filled(make, writer, "old", [1.0] * 50)
    former = look("SELECT max(layer_id) FROM layer")
    with Reader(data) as reader:
        rows = reader.measurements("old", layers=["a"])
        assert [next(rows)[1].run for _ in range(10)] == ["old"] * 10
        retained(writer, HistoryConfig(max_age_days=1.0), 10 * DAY_SECONDS)
        assert look("SELECT count(*) FROM layer") == [(0,)]
        if restarted:
            writer.close(30)
            writer = open_writer()
        filled(make, writer, "new", [10 * DAY_SECONDS] * 50)
        assert [measurement.run for _, measurement in rows] == []
        assert [measurement.run for _, measurement in reader.measurements("new", layers=["a"])] == ["new"] * 50
    assert look("SELECT layer_id FROM layer") > former


def test_nothing_is_too_old_while_the_clock_is_not_believed(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    filled(make, writer, "r", [1.0] * 5)
    times = iter([(1e9, 10.0), (2e9, 10_000.0)])  # not an hour yet; then a jump
    now = [0.0]

    def steady() -> float:
        now[0], steady_seconds = next(times)
        return steady_seconds

    work = Retention(
        writer._home.ledger._connection, HistoryConfig(), ClockTrust(1e9 - 10, 0.0), lambda: now[0], steady
    )
    assert not work.step() and not work.step()
    assert left(look) == {"r": (1, 5)}


def test_clock_is_believed_after_a_steady_hour() -> None:
    watch = ClockTrust(wall=1000.0, steady=0.0)
    assert not watch.believed(1030.0, 30.0)
    assert watch.believed(4600.0, 3600.0)
    assert watch.believed(4600.0 + 1059.0, 4600.0)  # 59 s over what passed
    assert not watch.believed(1e9, 4630.0)
    assert not watch.believed(1e9 + 30_000, 34_630.0)  # it stays wrong
    assert watch.believed(35_699.0, 34_640.0)  # and is put right


def test_clock_that_drifts_does_not_jump() -> None:
    watch = ClockTrust(0.0, 0.0)
    assert all(watch.believed(3600 + 31.0 * n, 3600 + 30.0 * n) for n in range(1000))


def test_bytes_are_taken_from_what_ended_first_then_from_the_largest(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    now = 1e6
    filled(make, writer, "ended first", [1.0] * 50, bytes(4000))
    filled(make, writer, "ended later", [1000.0] * 200, bytes(4000))
    filled(make, writer, "large", [now] * 150, bytes(4000))
    filled(make, writer, "small", [now] * 50, bytes(4000))
    held = []
    for share in (0.97, 0.9, 0.5, 0.3):
        total_bytes, free_bytes = used_bytes(writer._home.ledger._connection)
        if share == 0.97:
            whole_bytes = total_bytes - free_bytes
        retained(writer, HistoryConfig(max_bytes=int(share * whole_bytes)), now)
        total_bytes, free_bytes = used_bytes(writer._home.ledger._connection)
        assert total_bytes <= share * whole_bytes  # the file itself: free pages were given back
        held.append({name: last - first + 1 for name, (first, last) in left(look).items()})
    assert 0 < held[0]["ended first"] < 50 and held[0]["ended later"] == 200
    assert "ended first" not in held[1] and held[1]["ended later"] < 200
    assert held[1]["large"] == held[2]["large"] == 150
    assert "ended later" not in held[3] and held[3]["large"] < 150 and held[3]["small"] == 50
    assert look("SELECT count(*) FROM alert") == [(2,)]
    assert look("PRAGMA integrity_check") == [("ok",)]


def test_namespace_over_its_quota_loses_its_own_rows(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    for run in ("common", "@ns/one", "@ns/two", "@other/one"):
        filled(make, writer, run, [1.0] * 100, bytes(4000))
    retained(writer, HistoryConfig(), 1.0, {"ns": 400_000, "other": 10**9})
    rows = {name: last - first + 1 for name, (first, last) in left(look).items()}
    assert rows["common"] == rows["@other/one"] == 100
    assert 60 <= rows["@ns/one"] + rows["@ns/two"] <= 100
    assert abs(rows["@ns/one"] - rows["@ns/two"]) <= 10


def test_quotas_reach_the_writer(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer(disk_quotas=lambda: {"ns": 1})
    filled(make, writer, "@ns/r", [1.0] * 30)
    assert writer.close(30)
    assert left(look) == {}
    assert look("SELECT num_measurements FROM run") == [(30,)]


@pytest.mark.parametrize(("run", "namespace"), [("lm", ""), ("@ns/lm", "ns"), ("@ns/a/b", "ns"), ("@daemon", None)])
def test_whose_quota_a_run_counts_for(run: str, namespace: str | None) -> None:
    assert _owner(run) == namespace


def test_free_pages_are_given_back_many_at_a_time(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    filled(make, writer, "r", [1.0] * 2000, bytes(4000))
    retained(writer, HistoryConfig(), 1.0, {"": 1})
    total_bytes, free_bytes = used_bytes(writer._home.ledger._connection)
    assert free_bytes > 0.9 * total_bytes
    num = retained(writer, HistoryConfig(max_bytes=total_bytes // 2), 1.0)
    assert num <= free_bytes / 4096 / retention.SLICE_PAGES + 1
    assert used_bytes(writer._home.ledger._connection)[0] <= total_bytes // 2


def test_rows_from_a_clock_that_was_ahead_keep_no_others(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    ahead = [500 * DAY_SECONDS] * 25
    filled(make, writer, "r", [DAY_SECONDS, *ahead, *(n * DAY_SECONDS for n in range(2, 75))])
    filled(make, writer, "began ahead", [*ahead, *(n * DAY_SECONDS for n in range(75))])
    assert look("SELECT first_time FROM run ORDER BY run_id") == [(DAY_SECONDS,), (0.0,)]
    retained(writer, HistoryConfig(max_age_days=30), 99.5 * DAY_SECONDS)
    assert left(look) == {"r": (95, 99), "began ahead": (96, 100)}
    assert look("SELECT first_time FROM run") == [(70 * DAY_SECONDS,)] * 2
    writer._home.ledger._ids.forget()
    late = [Entry(n, make.measurement("r", "a", n, time=800 * DAY_SECONDS)) for n in range(100, 130)]
    writer.write(*late, Entry(130, make.measurement("r", "a", 130, time=75 * DAY_SECONDS)))
    retained(writer, HistoryConfig(max_age_days=30), 104.5 * DAY_SECONDS)
    assert left(look)["r"] == (100, 130)
    assert look("SELECT first_time FROM run WHERE name = 'r'") == [(75 * DAY_SECONDS,)]
    retained(writer, HistoryConfig(max_age_days=30), 105.5 * DAY_SECONDS)
    assert "r" not in left(look)


def test_clock_that_was_ahead_ends_no_run(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    now = 100 * DAY_SECONDS
    filled(make, writer, "ahead", [500 * DAY_SECONDS] * 200, bytes(4000))
    filled(make, writer, "live", [now - 60] * 50, bytes(4000))
    retained(writer, HistoryConfig(max_bytes=600_000), now)
    assert left(look)["live"] == (1, 50)


def test_run_that_ended_is_gone_with_its_last_measurement(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    filled(make, writer, "@ns/old", [1.0] * 30)
    filled(make, writer, "@ns/live", [1e6] * 30)
    writer.write(AlertEntry(1, make.alert("@daemon", None, "of no measurement", time=1.0)))
    retained(writer, HistoryConfig(), 1e6, {"ns": 1})
    assert look("SELECT name FROM run WHERE last_time IS NOT NULL ORDER BY name") == [("@daemon",), ("@ns/live",)]
    assert look("SELECT count(*) FROM layer") == [(1,)]
    assert look("SELECT count(*) FROM judge WHERE layer_id NOT IN (SELECT layer_id FROM layer)") == [(0,)]
