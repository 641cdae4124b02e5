import contextlib
import json
import math
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankd.config import ConfigError, Limits
from rankd.records import Alert, Measurement, State
from rankd.stages.record import MAX_RESUME_EVENTS, Record
from rankd_client.wire import Reply, decode_reply, encode_reply

STREAM_ID = "0123456789abcdef"


def record(data: Path | None = None, **limits: Any) -> Record:
    return Record(STREAM_ID, Limits(**limits), lambda: 12.5, Counter(), data)


def measurement(step: int = 1, run: str = "r", layer: str = "w", finite: bool = True) -> Measurement:
    metrics = {"stable_rank": 1.5 if finite else None}
    return Measurement(run, layer, step, (2, 3), finite, False, metrics)


def alert(alert_id: str, state: State = "firing", run: str = "r", layer: str = "w", message: str = "m") -> Alert:
    return Alert(alert_id, run, layer, 1, "warning", state, "rule", "stable_rank", 1.0, 2.0, message, "advice")


def test_numbers_count_per_run_and_kind() -> None:
    stage = record()
    first = stage(measurement(1, "x"), [alert("a", run="x"), alert("b", run="x")])
    second = stage(measurement(2, "x"), [alert("c", run="x")]) + stage(measurement(1, "y"), [])
    numbers = [(event.kind, event.run, event.seq) for event in first + second]
    assert numbers == [
        *[("measurement", "x", 1), ("alert", "x", 1), ("alert", "x", 2)],
        *[("measurement", "x", 2), ("alert", "x", 3), ("measurement", "y", 1)],
    ]
    assert {event.stream_id for event in first + second} == {STREAM_ID}
    assert (first[1].body["seq"], first[1].body["stream_id"], first[1].body["time"]) == (1, STREAM_ID, 12.5)


def test_state_holds_what_is_firing() -> None:
    stage = record()
    stage(measurement(1), [alert("a"), alert("b", layer="v")])
    stage(measurement(2), [alert("a", "resolved")])
    stage(measurement(7, "other", "v"), [alert("c", run="other"), alert("c", "rebased", run="other")])
    state = stage.state()
    assert [row["alert_id"] for row in state["alerts"]] == ["b"] and not state["truncated"]
    assert sorted(state["numbers"]) == [
        *[["alert", "other", 2], ["alert", "r", 3], ["measurement", "other", 1], ["measurement", "r", 2]]
    ]
    assert state["runs"][0] == {"run": "r", "step": 2, "num_measurements": 2, "layers": 1}
    only = stage.state("other")
    assert ([row["run"] for row in only["runs"]], only["alerts"]) == (["other"], [])
    assert stage.state("unknown")["numbers"] == []


def test_a_state_fits_a_reply_whatever_the_peers_call_things() -> None:
    stage = record()
    name = "ü" * 500
    for number in range(3000):
        layer, run = f"{number}{name}"[:1000], f"{number % 1500}{name}"[:120]
        stage(measurement(number, run, layer), [alert(str(number), run=run, layer=layer, message=f"{layer}: fell")])
    state = stage.state()
    assert state["truncated"]
    assert state["alerts"][-1]["alert_id"] == "2999", "the newest are kept"
    assert decode_reply(encode_reply(Reply(1, STREAM_ID, state))).body == state
    assert not stage.state(state["runs"][0]["run"])["truncated"], "and run by run one sees all"


@pytest.mark.parametrize(
    ("from_seq", "numbers", "first"),
    [(0, range(4, 8), 4), (4, range(4, 8), 4), (6, range(6, 8), 4), (8, [], 4), (99, [], 4)],
)
def test_resume(from_seq: int, numbers: list[int], first: int) -> None:
    stage = record(max_recent_measurements=4)
    for step in range(1, 8):
        stage(measurement(step), [])
    events, oldest, newest = stage.since("measurement", "r", from_seq)
    assert ([event.seq for event in events], oldest, newest) == (list(numbers), first, 7)
    assert [event.body["step"] for event in events] == list(numbers)


def test_resume_of_what_is_not_held() -> None:
    stage = record(max_recent_measurements=1)
    assert stage.since("alert", "unknown", 1) == ([], 1, 0)
    stage(measurement(1, "x"), [])
    stage(measurement(1, "y"), [])
    assert stage.since("measurement", "x", 1) == ([], 2, 1), "the other run's took its place; the number shows it"


def test_resume_gives_so_many_at_a_time() -> None:
    stage = record()
    for step in range(MAX_RESUME_EVENTS + 1):
        stage(measurement(step), [])
    events, _, newest = stage.since("measurement", "r", 1)
    assert (len(events), events[-1].seq, newest) == (MAX_RESUME_EVENTS, MAX_RESUME_EVENTS, MAX_RESUME_EVENTS + 1)


def test_a_forgotten_run_keeps_its_numbers() -> None:
    stage = record()
    stage(measurement(1), [alert("a")])
    stage.forget("r")
    assert (stage.state()["alerts"], stage.state()["runs"]) == ([], [])
    assert [event.seq for event in stage(measurement(2), [alert("b")])] == [2, 2]


def rows(file: Path) -> list[dict[str, Any]]:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return [json.loads(line, parse_constant=refuse) for line in file.read_text().splitlines()]


def test_rows_are_on_disk_at_once_as_json_lines(tmp_path: Path) -> None:
    for step in (1, 2):  # opened twice: rows are appended
        stage = record(tmp_path / "new")
        stage(measurement(step, layer="\n\x1b\u2028", finite=False), [alert("a")])
        assert [row["step"] for row in rows(tmp_path / "new" / "measurements.jsonl")] == list(range(1, step + 1))
        stage.close()
    row = rows(tmp_path / "new" / "measurements.jsonl")[0]
    assert (row["stable_rank"], row["finite"], row["layer"]) == (None, False, "\n\x1b\u2028")
    assert [row["alert_id"] for row in rows(tmp_path / "new" / "alerts.jsonl")] == ["a", "a"]


def test_nan_never_stands_in_a_row(tmp_path: Path) -> None:
    stage = record(tmp_path)
    with pytest.raises(ValueError, match="not JSON compliant"):
        stage(Measurement("r", "w", 1, (2, 2), True, False, {"stable_rank": math.nan}), [])
    stage.close()


def test_a_full_disk_costs_the_rows_alone(tmp_path: Path) -> None:
    (tmp_path / "measurements.jsonl").symlink_to("/dev/full")
    stage = record(tmp_path)
    for step in range(1, 4):
        assert len(stage(measurement(step), [alert("a")])) == 2
    assert stage.counters["dropped_rows"] == 3
    assert len(rows(tmp_path / "alerts.jsonl")) == 3
    stage.close()


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Of the whole process: only around what is to fail, or pytest's own output does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_up_within_a_row_leaves_whole_rows(tmp_path: Path) -> None:
    stage = record(tmp_path)
    with small_files():
        for step in range(9):
            stage(measurement(step), [])
    stage.close()
    written = rows(tmp_path / "measurements.jsonl")
    assert 0 < len(written) < 9 and len(written) + stage.counters["dropped_rows"] == 9


def test_where_there_can_be_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"data='.*/file'.*expected a directory"):
        record(tmp_path / "file")
