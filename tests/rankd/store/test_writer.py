"""What is handed to the writer is in the file, once, whatever else happens."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankd.config import HistoryConfig
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreInUse
from rankd.store.schema import FILE_NAME, VERSION, SchemaError
from rankd.store.writer import Writer

Look = Callable[..., list[Any]]
Open = Callable[..., Any]
SECOND, THIRD = "5ec0" * 4, "7d" * 8


def test_measurement_is_kept_whole(make: Any, open_writer: Open, look: Look) -> None:
    metrics = {"stable_rank": 2.5, "effective_rank": None, "loss": 0.25}
    measurement = make.measurement(
        step=7, shape=(4, 3, 2), metrics=metrics, method="gram", source_dtype="float32", wire_dtype="bfloat16",
        measure_seconds=0.5, summary=b"spectrum", extra={"error": {"stable_rank": 0.125}},
    )  # fmt: skip
    open_writer().write(Entry(1, measurement))
    columns = "n, step, time, finite, zero, stable_rank, effective_rank, participation_ratio, measure_seconds"
    assert look(f"SELECT {columns} FROM measurement") == [(1, 7, 1000.0, 1, 0, 2.5, None, None, 0.5)]
    assert json.loads(look("SELECT extra FROM measurement")[0][0]) == {"loss": 0.25, "error": {"stable_rank": 0.125}}
    kind = look("SELECT shape, method, source_dtype, wire_dtype FROM kind")
    assert kind == [("[4, 3, 2]", "gram", "float32", "bfloat16")]
    assert look("SELECT n, summary FROM spectrum") == [(1, b"spectrum")]
    assert look("SELECT name, role, last_step, last_time, num_measurements FROM layer") == [("a", "weight", 7, 1000, 1)]


def test_time_is_the_clocks_where_a_measurement_has_none(make: Any, open_writer: Open, look: Look) -> None:
    open_writer(clock=lambda: 5.0).write(Entry(1, make.measurement(time=None)))
    assert look("SELECT time FROM measurement") == [(5.0,)]


def test_batch_of_many_runs(make: Any, open_writer: Open, look: Look) -> None:
    runs = [f"run-{index}" for index in range(20)]
    entries = [entry for run in runs for entry in make.entries(7, run, ("a", "b", "c"))]
    writer = open_writer()
    writer.write(*entries)
    assert writer.told.committed == entries
    assert look("SELECT name, num_measurements, last_step FROM run ORDER BY run_id") == [(run, 7, 2) for run in runs]
    query = "SELECT name, n FROM measurement JOIN run USING (run_id) ORDER BY run_id, n"
    assert look(query) == [(run, n) for run in runs for n in range(1, 8)]
    assert look("SELECT count(*) FROM layer") == [(60,)]


def test_roles_of_a_layer_are_kept_apart(make: Any, open_writer: Open, look: Look) -> None:
    open_writer().write(Entry(1, make.measurement(role="weight")), Entry(2, make.measurement(role="update")))
    assert look("SELECT role, num_measurements FROM layer ORDER BY role") == [("update", 1), ("weight", 1)]


def test_alerts_come_with_their_measurement(make: Any, open_writer: Open, look: Look) -> None:
    fired, ended = make.alert(alert_id="x"), make.alert(alert_id="x", state="resolved", step=2)
    other = make.alert(alert_id="y", rule="zero", severity="critical")
    reset = make.alert(alert_id="z", rule="baseline_reset", state="rebased", severity="info")
    writer = open_writer()
    writer.write(Entry(1, make.measurement(), ((1, fired), (2, other))))
    assert look("SELECT alert_id, n FROM firing ORDER BY n") == [("x", 1), ("y", 2)]
    writer.write(Entry(2, make.measurement(step=2), ((3, ended), (4, reset))))
    assert look("SELECT alert_id, n FROM firing") == [("y", 2)]
    body = json.loads(look("SELECT body FROM alert WHERE n = 3")[0][0])
    assert body == {key: value for key, value in ended.to_json().items() if key not in ("stream_id", "seq")}
    assert look("SELECT num_alerts FROM run") == [(4,)]


def test_alert_that_fires_and_ends_in_one_batch_is_not_left_firing(
    make: Any, open_writer: Open, look: Look, data: Path
) -> None:
    config = HistoryConfig()
    writer = Writer(data, config, lambda entries: None, lambda error: None)
    for n, state in enumerate(("firing", "resolved", "firing", "resolved"), 1):
        writer.submit(AlertEntry(n, make.alert(alert_id="x", state=state)))
    writer.start()
    assert writer.close(30)
    assert look("SELECT (SELECT count(*) FROM alert), (SELECT count(*) FROM firing)") == [(4, 0)]


def test_alert_without_a_measurement(make: Any, open_writer: Open, look: Look) -> None:
    open_writer().write(AlertEntry(1, make.alert(run="@daemon", layer=None, step=None, rule="disk_full")))
    assert look("SELECT name, num_measurements, num_alerts, last_time FROM run") == [("@daemon", 0, 1, 1000.0)]


def test_newest_state_of_the_detectors(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    writer.write(Entry(1, make.measurement(), (), b"first"), Entry(2, make.measurement(step=2), (), b"second"))
    writer.write(Entry(3, make.measurement(step=3)))
    assert look("SELECT n, state FROM judge") == [(2, b"second")]


def test_what_the_file_has_is_told_but_not_written_again(make: Any, open_writer: Open, look: Look) -> None:
    alert = make.alert()
    entries = [Entry(1, make.measurement(), ((1, alert),)), AlertEntry(2, make.alert(alert_id="k"))]
    writer = open_writer()
    writer.write(*entries)
    tables = (
        "SELECT * FROM measurement",
        "SELECT * FROM alert",
        "SELECT layer_id, last_step, num_measurements FROM layer",
    )
    before = [look(query) for query in tables]
    writer.close(30)
    restarted = open_writer()
    restarted.write(*entries)
    assert restarted.told.committed == entries
    assert [look(query) for query in tables] == before
    restarted.write(Entry(2, make.measurement(step=2)), AlertEntry(3, make.alert(alert_id="l")))
    assert look("SELECT num_measurements, num_alerts FROM run") == [(2, 3)]


def test_superseded_snapshots_are_counted(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    for layer, num in (("a", 3), ("new", 2)):
        for _ in range(num):
            writer.superseded("r", layer, "weight")
    writer.write(Entry(1, make.measurement()))
    writer.superseded("r", "a", "weight")
    assert writer.flush(30)
    query = "SELECT name, num_superseded, num_measurements FROM layer ORDER BY name"
    assert look(query) == [("a", 4, 1), ("new", 2, 0)]


def test_stream_goes_on_after_a_restart(open_writer: Open) -> None:
    first = open_writer()
    assert len(first.stream_id) == 16 and first.moved_aside is None
    first.close(30)
    assert open_writer().stream_id == first.stream_id


def test_switched_stream_is_kept_with_its_bases(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    writer.write(*make.entries(3))
    writer.switch_stream(SECOND, {("measurement", "r"): 3, ("alert", "r"): 0, ("alert", "new"): 5})
    assert writer.told.wait_for_faults(1) == [None]
    writer.switch_stream(THIRD, {("measurement", "r"): 4})
    assert writer.flush(30)
    assert look("SELECT stream_id FROM stream ORDER BY position") == [(writer.stream_id,), (SECOND,), (THIRD,)]
    query = "SELECT stream_id, name, kind, base FROM base JOIN run USING (run_id) ORDER BY 1, 2"
    rows = [(SECOND, "new", "alert", 5), (SECOND, "r", "measurement", 3), (THIRD, "r", "measurement", 4)]
    assert look(query) == rows
    writer.close(30)
    assert open_writer().stream_id == THIRD


def test_a_stream_is_on_disk_no_sooner_than_what_was_told_in_it(
    make: Any, data: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon killed in between would go on in the new stream, and give its numbers out a second time."""
    monkeypatch.setattr("rankd.store.writer.MAX_BATCH", 2)
    seen: list[tuple[int, int]] = []

    def look_on(entries: Any) -> None:
        (rows,), (streams,) = look("SELECT count(*) FROM measurement"), look("SELECT count(*) FROM stream")
        seen.append((*rows, *streams))

    writer = Writer(data, HistoryConfig(), look_on, lambda error: None)
    entries = make.entries(8)
    for entry in entries[:5]:
        writer.submit(entry)
    writer.switch_stream("second", {("measurement", "r"): 1})
    for entry in entries[5:]:
        writer.submit(entry)
    writer.start()
    assert writer.flush(30) and writer.close(30)
    assert seen == [(2, 1), (4, 1), (6, 2), (8, 2)]


def test_a_stream_waits_for_nothing_that_was_given_up(make: Any, data: Path, look: Look) -> None:
    writer = Writer(data, HistoryConfig(max_pending=2), lambda entries: None, lambda error: None)
    given_up = [dropped for entry in make.entries(5) for dropped in writer.submit(entry)]
    assert len(given_up) == 3
    writer.switch_stream("second", {})
    writer.start()
    assert writer.flush(30) and writer.close(30)
    assert look("SELECT count(*) FROM stream") == [(2,)]


def test_room_is_made_by_the_oldest_without_alerts(make: Any, data: Path) -> None:
    writer = Writer(data, HistoryConfig(max_pending=3), lambda entries: None, lambda error: None)
    alerting = Entry(1, make.measurement(), ((1, make.alert()),))
    plain = make.entries(3, first=2)
    assert [writer.submit(entry) for entry in (alerting, *plain[:2])] == [[], [], []]
    assert writer.submit(plain[2]) == [plain[0]]
    second = [Entry(n, make.measurement(), ((n, make.alert()),)) for n in (5, 6, 7)]
    assert [writer.submit(entry) for entry in second] == [[plain[1]], [plain[2]], [alerting]]
    assert writer.num_pending == 3 and writer.oldest_pending_seconds() >= 0
    writer.start()
    assert writer.close(30)
    assert writer.num_pending == 0 and writer.oldest_pending_seconds() == 0


def test_second_writer_is_refused(open_writer: Open) -> None:
    first = open_writer()
    with pytest.raises(StoreInUse):
        open_writer()
    first.close(30)
    open_writer()


def test_files_are_for_their_owner_alone(make: Any, open_writer: Open, data: Path) -> None:
    open_writer().write(*make.entries(1))
    assert data.stat().st_mode & 0o777 == 0o700
    modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
    assert modes == dict.fromkeys((FILE_NAME, f"{FILE_NAME}-wal", f"{FILE_NAME}-shm", "lock"), 0o600)


def test_closing_leaves_one_file_with_a_roll_up(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    writer = open_writer()
    for entry in make.entries(50):
        writer.submit(entry)
    assert writer.close(30)
    assert sorted(path.name for path in data.iterdir()) == [FILE_NAME, "lock"]
    assert look("SELECT sum(num), (SELECT rolled_n FROM run) FROM rollup") == [(50, 50)]


def test_newer_version_is_refused_and_left_alone(open_writer: Open, data: Path) -> None:
    open_writer().close(30)
    connection = sqlite3.connect(data / FILE_NAME)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.close()
    before = (data / FILE_NAME).read_bytes()
    with pytest.raises(SchemaError, match=f"its version is {VERSION + 1}"):
        open_writer()
    assert (data / FILE_NAME).read_bytes() == before


def test_database_of_another_program_is_refused(open_writer: Open, data: Path) -> None:
    data.mkdir(mode=0o700)
    connection = sqlite3.connect(data / FILE_NAME)
    connection.execute("CREATE TABLE precious (value)")
    connection.close()
    before = (data / FILE_NAME).read_bytes()
    with pytest.raises(SchemaError, match="another program"):
        open_writer()
    assert (data / FILE_NAME).read_bytes() == before


def test_empty_file_becomes_a_history(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    data.mkdir(mode=0o700)
    (data / FILE_NAME).touch()
    open_writer().write(*make.entries(2))
    assert look("PRAGMA user_version") == [(VERSION,)]
    assert look("SELECT count(*) FROM measurement") == [(2,)]


def test_flush_waits_for_what_is_still_being_told(make: Any, data: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def committed(entries: object) -> None:
        entered.set()
        go_on.wait(30)

    writer = Writer(data, HistoryConfig(), committed, lambda error: None)
    writer.start()
    writer.submit(make.entries(1)[0])
    assert entered.wait(30) and writer.num_pending == 0
    assert not writer.flush(0.01)
    go_on.set()
    assert writer.flush(30) and writer.close(30)


def test_mistake_of_ours_is_raised_to_who_submits(make: Any, data: Path) -> None:
    told: list[str] = []

    def broken(entries: object) -> None:
        told.append("called")
        raise ZeroDivisionError

    writer = Writer(data, HistoryConfig(), broken, lambda error: None)
    writer.submit(Entry(1, make.measurement()))
    writer.start()
    writer._thread.join(30)
    assert told == ["called"]
    with pytest.raises(RuntimeError, match="writer failed"):
        writer.submit(Entry(2, make.measurement()))
    writer.close(30)
