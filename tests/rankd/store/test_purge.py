"""A run of which the last measurement is gone goes a slice at a time: no commit waits long for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.store import removal, retention
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.retention import ClockTrust, Retention

Look = Callable[..., list[Any]]
Open = Callable[..., Any]
NUM_LAYERS = 130
LAYERS = tuple(f"layer {index}" for index in range(NUM_LAYERS))
TABLES = ("alert", "firing", "judge", "kind", "layer", "measurement", "rollup")


@pytest.fixture
def writer(make: Any, open_writer: Open, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a run that ended long ago, of many layers with an alert each, rolled up."""
    monkeypatch.setattr(removal, "SLICE_ROWS", 40)
    writer = open_writer()
    for entry in make.entries(2 * NUM_LAYERS, "old", LAYERS):
        alert = make.alert("old", entry.measurement.layer, str(entry.measurement.layer))
        writer.submit(Entry(entry.n, entry.measurement, ((entry.n, alert),), b"state"))
    assert writer.flush(30)
    while writer._home.ledger._rollup.step():
        pass
    return writer


def retaining(writer: Any) -> Retention:
    now = 400 * 86_400.0
    trust = ClockTrust(now - 2 * retention.STEADY_SECONDS, 0.0)
    connection = writer._home.ledger._connection
    return Retention(connection, HistoryConfig(), trust, lambda: now, lambda: 2 * retention.STEADY_SECONDS)


def changes(writer: Any, work: Retention) -> int:
    """Rows that one slice changes; 0: there is nothing more to do."""
    connection = writer._home.ledger._connection
    before = connection.total_changes
    more = work.step()
    writer._home.ledger._ids.forget()
    assert more or connection.total_changes == before
    return int(connection.total_changes - before)


def test_purge_in_slices(writer: Any, look: Look) -> None:
    work = retaining(writer)
    sizes = []
    while size := changes(writer, work):
        sizes.append(size)
    assert max(sizes) <= 2 * NUM_LAYERS + 1, sizes  # of which alerts are on, and layers there were, is said at once
    assert [look(f"SELECT count(*) FROM {table}") for table in TABLES] == [[(0,)]] * len(TABLES)
    columns = "name, first_time, last_time, last_step, num_measurements, num_alerts, measurement_bytes, alert_bytes"
    assert look(f"SELECT {columns} FROM run") == [("old", None, None, None, 260, 260, 0, 0)]


def test_run_that_comes_back_amid_its_purge(make: Any, writer: Any, look: Look, data: Path) -> None:
    """At any moment it has all that its detectors remember, or begins anew."""
    remembered = set()
    work = retaining(writer)
    while changes(writer, work):
        (num,) = look("SELECT count(*) FROM judge JOIN layer USING (layer_id) JOIN run USING (run_id)")[0]
        remembered.add(num)
        if num == 0:
            break
    assert remembered == {NUM_LAYERS, 0} and look("SELECT count(*) > 0 FROM judge") == [(1,)]
    n = 2 * NUM_LAYERS + 1
    writer.write(Entry(n, make.measurement("old", LAYERS[0], n, time=399 * 86_400.0), (), b"new"))
    while changes(writer, work):
        pass
    with Reader(data) as reader:
        assert [state for (state,) in look("SELECT state FROM judge")] == [b"new"]
        assert reader.judge("old", LAYERS[0], "weight") == (b"new", [])
        assert [layer.name for layer in reader.layers("old")] == [LAYERS[0]]
        assert reader.heatmap("old", "stable_rank").layers == (LAYERS[0],)


def test_purge_goes_on_after_a_restart(writer: Any, open_writer: Open, look: Look) -> None:
    work = retaining(writer)
    while look("SELECT count(*) FROM measurement") != [(0,)] or look("SELECT count(*) FROM judge") == [(NUM_LAYERS,)]:
        assert changes(writer, work)
    assert look("SELECT count(*) FROM judge") > [(0,)]
    assert writer.close(30)
    assert look("SELECT count(*) FROM judge") == [(0,)]
