import contextlib
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rankd.records import METRIC_NAMES, Measurement
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import StoreError
from rankd.store.measured import SLICE
from rankd.store.reader import Reader

ENDLESS_WRITER = Path(__file__).with_name("endless_writer.py")
NUM_LAYERS = 20
"""That it writes in turn."""
Rows = list[tuple[int, Measurement]]
SECOND = "5ec0" * 4


def test_rows_come_back_as_they_were_written(make: Any, open_writer: Any, data: Path) -> None:
    null = dict.fromkeys(make.measurement().metrics)
    kinds = {"method": "gram", "source_dtype": "float32", "wire_dtype": "bfloat16", "measure_seconds": 0.25}
    written = [
        make.measurement(layer="ünï\n", step=7, shape=(2, 3, 4), extra={"loss": 0.1 + 0.2, "more": [1, None]}, **kinds),
        make.measurement(finite=False, metrics=null, role="gradient"),
        make.measurement(zero=True, metrics=dict.fromkeys(null, 0.0), time=1e9 + 1 / 3),
    ]
    open_writer().write(*(Entry(n, measurement) for n, measurement in enumerate(written, 1)))
    with Reader(data) as reader:
        assert list(reader.measurements("r")) == list(enumerate(written, 1))
        assert [m.to_json() for _, m in reader.measurements("r")] == [m.to_json() for m in written]
        assert reader.metrics("r") == [*METRIC_NAMES, "loss", "more"]


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Rows]:
    """More than one slice, in layers of several names and roles."""
    from rankd.config import HistoryConfig
    from rankd.store.writer import Writer

    data = tmp_path_factory.mktemp("many")
    names = [("block.0.w", "weight"), ("block.0.w", "update"), ("block.1.w", "weight"), ("Block[2]", "weight")]
    rows = []
    for n in range(1, 2 * SLICE + 100):
        name, role = names[n % 4]
        rows.append((n, Measurement("r", name, n // 4, (4, 3), True, False, {"stable_rank": 1.0}, role, time=1.0)))
    writer = Writer(data, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    for n, measurement in rows:
        writer.submit(Entry(n, measurement))
    assert writer.flush(30)
    writer.close(30)
    return data, [(n, m) for n, m in rows]


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({}, lambda n, m: True),
        ({"layers": ["block.*"]}, lambda n, m: m.layer.startswith("block")),
        ({"layers": ["*[[]2]", "block.1.?"]}, lambda n, m: m.layer in ("Block[2]", "block.1.w")),
        ({"layers": ["BLOCK*"]}, lambda n, m: False),
        ({"role": "update"}, lambda n, m: m.role == "update"),
        ({"layers": ["*0*"], "role": "weight"}, lambda n, m: n % 4 == 0),
        ({"from_step": 500, "to_step": 600}, lambda n, m: 500 <= m.step <= 600),
        ({"from_n": SLICE}, lambda n, m: n >= SLICE),
        ({"from_n": 3, "limit": SLICE + 5}, lambda n, m: 3 <= n < SLICE + 8),
        ({"limit": 0}, lambda n, m: False),
        ({"layers": ["block.1.w"], "limit": SLICE // 3}, lambda n, m: n % 4 == 2 and n // 4 < SLICE // 3),
        ({"current": True}, lambda n, m: True),
    ],
    ids=lambda case: str(case) if isinstance(case, dict) else "",
)
def test_what_is_asked_for_comes_once_and_in_order(
    many: tuple[Path, Rows], options: dict[str, Any], wanted: Callable[[int, Measurement], bool]
) -> None:
    data, rows = many
    with Reader(data) as reader:
        found = [(n, m.layer, m.role, m.step) for n, m in reader.measurements("r", **options)]
    assert found == [(n, m.layer, m.role, m.step) for n, m in rows if wanted(n, m)]


def test_runs_and_layers(make: Any, open_writer: Any, data: Path) -> None:
    writer = open_writer()
    writer.write(*make.entries(6, "one"), *make.entries(2, "two", ("w",)))
    writer.write(
        Entry(7, make.measurement("one", "a", 9, time=5000.0), ((1, make.alert("one", alert_id="x", time=5000.0)),))
    )
    writer.superseded("one", "b", "weight")
    writer.write(*make.entries(1, "two", ("w",), first=3))
    with Reader(data) as reader:
        two, one = reader.runs()
        assert (one.name, one.num_layers, one.num_measurements, one.num_alerts, one.num_firing) == ("one", 2, 7, 1, 1)
        assert (one.first_time, one.last_step, two.last_time) == (1001.0, 9, 1003.0)
        assert reader.run("two") == two
        a, b = reader.layers("one")
        assert (a.name, a.role, a.last_step, a.last_time, a.num_measurements) == ("a", "weight", 9, 5000.0, 4)
        assert (b.name, b.num_superseded, b.num_measurements) == ("b", 1, 3)
        assert reader.last_steps("one") == {("a", "weight"): 9, ("b", "weight"): 2}
        assert (reader.first_n("measurement", "one"), reader.first_n("alert", "two")) == (1, 1)


def test_a_run_that_is_not_there_has_nothing(make: Any, open_writer: Any, data: Path) -> None:
    open_writer().write(*make.entries(1))
    with Reader(data) as reader:
        assert reader.run("no") is None
        assert (reader.layers("no"), reader.last_steps("no"), reader.firing("no")) == ([], {}, [])
        assert list(reader.measurements("no")) == list(reader.alerts("no")) == []
        assert reader.judge("no", "a", "weight") == reader.judge("r", "no", "weight") == (None, [])
        assert (reader.first_n("alert", "no"), reader.base(reader.stream_id, "alert", "no")) == (1, 0)


def test_the_judge_goes_on_from_its_last_state(make: Any, open_writer: Any, data: Path) -> None:
    entries = [Entry(n, make.measurement(step=n), (), b"state" if n == 4 else None) for n in range(1, 7)]
    writer = open_writer()
    writer.write(*entries[:3])
    with Reader(data) as reader:
        state, since = reader.judge("r", "a", "weight")
        assert state is None and [m.step for m in since] == [1, 2, 3]
        writer.write(*entries[3:])
        assert reader.judge("r", "a", "weight") == (b"state", [entry.measurement for entry in entries[4:]])


def test_alerts_and_which_of_them_fire(make: Any, open_writer: Any, data: Path) -> None:
    on, off = make.alert(alert_id="x"), make.alert(alert_id="x", state="resolved")
    other = make.alert("@daemon", None, "y", message="\x1b[2J")
    writer = open_writer()
    writer.write(Entry(1, make.measurement(), ((1, on), (2, off), (3, make.alert(alert_id="z")))), AlertEntry(1, other))
    with Reader(data) as reader:
        assert [(n, body["alert_id"], body["state"]) for n, body in reader.alerts("r")] == [
            (1, "x", "firing"),
            (2, "x", "resolved"),
            (3, "z", "firing"),
        ]
        assert [n for n, _ in reader.alerts("r", from_n=2, limit=1)] == [2]
        assert {(run, n, body["alert_id"]) for run, n, body in reader.firing()} == {("r", 3, "z"), ("@daemon", 1, "y")}
        (fired,) = reader.firing("@daemon")
        published = other.published("s", 1, other.time).to_json()
        assert {**fired[2], "stream_id": "s", "seq": 1} == published


def test_numbers_of_streams(make: Any, open_writer: Any, data: Path) -> None:
    writer = open_writer()
    first = writer.stream_id
    writer.write(*(AlertEntry(n, make.alert(alert_id=str(n))) for n in (1, 2, 3)))
    writer.switch_stream(SECOND, {("alert", "r"): 2})
    writer.write(AlertEntry(1, make.alert("new", alert_id="n")))
    with Reader(data) as reader:
        assert (reader.stream_id, reader.streams()) == (SECOND, [SECOND, first])
        assert [reader.base(stream, "alert", "r") for stream in (first, SECOND, "unheard-of")] == [0, 2, None]
        assert [reader.end(stream, "alert", "r") for stream in (first, SECOND, "unheard-of")] == [2, None, None]
        assert (reader.base(SECOND, "alert", "new"), reader.end(first, "alert", "new")) == (0, 0)
        told = [(body["stream_id"], body["seq"]) for body in reader.published_alerts("r")]
        assert told == [(first, 1), (first, 2), (SECOND, 1)]
        assert [(body["stream_id"], body["seq"]) for body in reader.published_alerts("new")] == [(SECOND, 1)]


def test_rows_that_are_gone_have_left_their_numbers(make: Any, open_writer: Any, data: Path, look: Any) -> None:
    writer = open_writer()
    writer.write(*make.entries(6))
    writer.close(30)
    look("DELETE FROM measurement WHERE n <= 4")
    with Reader(data) as reader:
        assert (reader.first_n("measurement", "r"), [n for n, _ in reader.measurements("r")]) == (5, [5, 6])
        look("DELETE FROM measurement")
        assert (reader.first_n("measurement", "r"), list(reader.measurements("r"))) == (7, [])


def test_while_another_process_writes_and_after_it_was_killed(data: Path) -> None:
    with (
        subprocess.Popen([sys.executable, str(ENDLESS_WRITER), str(data)], stdout=subprocess.PIPE, text=True) as writer,
        contextlib.ExitStack() as always,
    ):
        always.callback(writer.kill)
        assert writer.stdout is not None
        told = 0
        while told < NUM_LAYERS:  # by then there is something of each
            told = int(writer.stdout.readline())
        with Reader(data) as reader:
            for _ in range(10):
                numbers = [n for n, _ in reader.measurements("r", layers=["layer-?", "layer-1?"])]
                assert numbers == list(range(1, numbers[-1] + 1)) and numbers[-1] >= told
                state, since = reader.judge("r", "layer-7", "weight")
                assert state is not None and since == []  # one moment: each row has brought its state
                told = int(writer.stdout.readline())
            writer.kill()
            told = max([told, *map(int, writer.stdout.read().split())])
            assert len(list(reader.measurements("r"))) >= told
    with Reader(data) as reader:
        assert len(list(reader.measurements("r"))) == len(list(reader.alerts("r"))) >= told


def test_a_reader_in_the_midst_of_a_run_holds_up_no_writer(make: Any, open_writer: Any, data: Path, look: Any) -> None:
    writer = open_writer()
    writer.write(*make.entries(SLICE + 10))
    with Reader(data) as reader:
        walk = reader.measurements("r")
        next(walk)
        writer.write(*make.entries(500, first=SLICE + 11))
        (busy, _, _) = look("PRAGMA wal_checkpoint(TRUNCATE)")[0]
        assert busy == 0
        assert [n for n, _ in walk] == list(range(2, SLICE + 11))  # what was there when it began


def test_started_and_read_at_once(make: Any, open_writer: Any, data: Path) -> None:
    open_writer()
    with Reader(data) as reader:
        assert reader.runs() == [] and reader.stream_id != ""
        assert reader.firing() == []


@pytest.mark.parametrize("globs", [["["], ["*" * 50 + "x"], ["[!a]"]])
def test_globs_of_any_kind(many: tuple[Path, Rows], globs: list[str]) -> None:
    with Reader(many[0]) as reader:
        assert all(m.layer != "a" for _, m in reader.measurements("r", layers=globs))


def test_a_damaged_page_is_a_store_error(many: tuple[Path, Rows], tmp_path: Path) -> None:
    from rankd.store.schema import FILE_NAME

    content = bytearray((many[0] / FILE_NAME).read_bytes())
    content[len(content) // 2 : len(content) // 2 + 40_000] = b"\xff" * 40_000
    (tmp_path / FILE_NAME).write_bytes(content)
    with Reader(tmp_path) as reader, pytest.raises(StoreError) as caught:
        for kind in ("r",):
            list(reader.measurements(kind))
            list(reader.alerts(kind))
            reader.layers(kind)
    assert caught.value.kind == "damaged" and str(tmp_path) in str(caught.value)
