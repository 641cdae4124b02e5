"""Rows → alerts, the same as the daemon's."""

import gzip
import json
import os
import random
import re
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rankd.judge import DetectConfig
from rankd.records import Alert, Measurement
from rankd.replay import BadRowError, read_file, read_rows, replay
from rankd.stages.detect import Detect

ROW: dict[str, Any] = {
    **{"run": "r", "step": 1, "layer": "w", "rows": 8, "cols": 8},
    **{"stable_rank": 2.0, "effective_rank": 4.0, "spectral_norm": 1.0},
}


def line(**changes: Any) -> bytes:
    return json.dumps({**ROW, **changes}).encode() + b"\n"


def measurements(seed: int) -> Iterator[Measurement]:
    """Two runs of three layers and two roles that fall and grow, break, go back, repeat themselves, change shape."""
    source = random.Random(seed)
    level = dict.fromkeys(("a", "b", "c"), 50.0)
    step = 100
    for check in range(400):
        step += source.choice((1, 1, 1, 1, 7)) if source.random() > 0.01 else -source.randrange(40)
        for run in ("one", "two"):
            for layer in level:
                level[layer] *= source.choice((1.0, 1.0, 1.0, 0.999, 1.001)) if check % 90 else 0.8
                value = level[layer] + source.random() / 7
                finite, zero = source.random() > 0.005, source.random() < 0.005
                metrics = {"stable_rank": value / 3, "effective_rank": value, "spectral_norm": 100 / value}
                if not finite or zero:
                    metrics = dict.fromkeys(metrics, 0.0 if finite else None)
                yield Measurement(
                    run,
                    layer,
                    max(step, 0),
                    (8, 2, 4) if check < 300 else (8, 8),
                    finite,
                    finite and zero,
                    metrics,
                    source.choice(("weight", "weight", "gradient")),
                    time=1.7e9 + check / 7,
                    extra={"loss": source.random()},
                )


@pytest.mark.parametrize("seed", range(4))
def test_a_replay_gives_the_daemons_alerts_bit_for_bit(tmp_path: Path, seed: int) -> None:
    config = DetectConfig(ema="warning", ema_window=20)
    recorded = list(measurements(seed))
    detect, numbers, published = Detect(config), dict.fromkeys(("one", "two"), 0), []
    for measurement in recorded:
        for alert in detect(measurement):
            numbers[alert.run] += 1
            published.append(alert.published("", numbers[alert.run], alert.time))
    file = tmp_path / "rows.jsonl.gz"
    with gzip.open(file, "wt") as rows:
        rows.writelines(json.dumps(measurement.to_json()) + "\n" for measurement in recorded)
    replayed = list(replay(read_file(file), config))
    assert [json.dumps(alert.to_json()) for alert in replayed] == [json.dumps(alert.to_json()) for alert in published]
    assert len({alert.rule for alert in replayed}) >= 5


def alerts_of(stream_ids: dict[str, str] | None = None) -> list[Alert]:
    bad = [Measurement.from_json({**ROW, "run": run, "finite": False, "time": 5}) for run in ("x", "y")]
    good = [replace(each, finite=True, step=2, time=None) for each in bad]
    return list(replay([*bad, *good], stream_ids=stream_ids))


def test_numbers_count_by_run_and_the_time_is_the_rows() -> None:
    seen = [(alert.run, alert.seq, alert.time, alert.stream_id) for alert in alerts_of({"y": "s"})]
    assert seen == [("x", 1, 5.0, ""), ("y", 1, 5.0, "s"), ("x", 2, 0.0, ""), ("y", 2, 0.0, "s")]


def test_rows_without_a_step_change_nothing() -> None:
    rows = [Measurement.from_json({**ROW, "step": None, "finite": index % 2 == 0}) for index in range(10)]
    assert list(replay(rows)) == []


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "gzip without the name"])
def test_files_plain_and_compressed(tmp_path: Path, name: str) -> None:
    content = line() + b"\n  \r\n" + line(step=2).rstrip(b"\n") + b"\r\n" + line(step=3).rstrip(b"\n")
    path = tmp_path / name
    path.write_bytes(content if name == "rows.jsonl" else gzip.compress(content))
    assert [measurement.step for measurement in read_file(path)] == [1, 2, 3]


def test_each_row_comes_as_soon_as_its_line_has() -> None:
    source, sink = os.pipe()
    with open(source, "rb") as stream, open(sink, "wb", buffering=0) as pipe:  # noqa: PTH123
        pipe.write(line(step=7))
        rows = read_rows(stream, "-")
        assert next(rows).step == 7
        pipe.write(line(step=8) + line(step=9)[:20])
        assert next(rows).step == 8


BAD: list[tuple[bytes, str]] = [
    (b"{\n", "f:2: no JSON: "),
    (b"[1]\n", "f:2: expected a JSON object"),
    (b"null\n", "f:2: expected a JSON object"),
    (b"\xff\n", "f:2: no JSON: 'utf-8' codec can't decode byte 0xff"),
    (b"[" * 100_000 + b"\n", "f:2: nested too deeply; expected one JSON object"),
    (b'{"run": NaN}\n', "f:2: NaN is no JSON; expected a number or null"),
    (b'{"run": "r"}\n', "f:2: step is missing; expected at least run, step, layer, rows"),
    (line(effective_rank="4"), "f:2: effective_rank is '4'; expected a finite number or null"),
    (line().replace(b"4.0", b"1e999"), "f:2: effective_rank is inf; expected a finite number or null"),
    (line().replace(b"4.0", b"9" * 5000), "f:2: "),
    (line()[:-20], "f:2: the last line ends in the middle; is the file still being written?"),
]


@pytest.mark.parametrize(("bad", "words"), BAD, ids=lambda case: str(case)[:40])
def test_a_bad_line_is_named_with_its_file_and_number(tmp_path: Path, bad: bytes, words: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(line() + bad + (b"" if bad == BAD[-1][0] else line(step=3)))
    with path.open("rb") as stream, pytest.raises(BadRowError, match=re.escape(words)):
        list(read_rows(stream, "f"))
    told: list[BadRowError] = []
    steps = [measurement.step for measurement in read_file(path, told.append)]
    assert steps == ([1] if bad == BAD[-1][0] else [1, 3])
    assert len(told) == 1 and words.removeprefix("f") in str(told[0])


NUMBERED = b"".join(line(step=step, note=random.Random(step).random()) for step in range(2000))


@pytest.mark.parametrize("cut", [1, 9, 10, 5_000, 20_000, -9, -1])
def test_gzip_that_ends_in_the_middle_is_said_after_all_that_is_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(NUMBERED)[:cut])
    told: list[BadRowError] = []
    steps = [measurement.step for measurement in read_file(path, told.append)]
    assert steps == list(range(len(steps)))
    assert bool(steps) == (cut not in (1, 9, 10)) and (len(steps) == 2000) == (cut < 0)
    why = "cannot be read: it ends in the middle; is it still being written?"
    assert [str(error) for error in told] == [f"{path}:{len(steps) + 1}: {why}"]


@pytest.mark.parametrize("place", [0, 3, 10, 15_000, -6, -2])
def test_damaged_gzip_is_said(tmp_path: Path, place: int) -> None:
    content = bytearray(gzip.compress(NUMBERED))
    content[place] ^= 0xFF
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(content)
    with pytest.raises(BadRowError, match=r"rows\.jsonl\.gz:\d+: "):
        list(read_file(path))


def test_gzip_in_several_parts_with_padding(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress(line(step=1) + line(step=2)[:9]) + gzip.compress(line(step=2)[9:]) + bytes(512))
    assert [measurement.step for measurement in read_file(path)] == [1, 2]
    path.write_bytes(b"")
    assert list(read_file(path)) == []


def test_zipped_rows_too_come_as_soon_as_they_are_there() -> None:
    source, sink = os.pipe()
    zipped = zlib.compressobj(wbits=31)
    with open(source, "rb") as stream, open(sink, "wb", buffering=0) as pipe:  # noqa: PTH123
        pipe.write(zipped.compress(line(step=7)) + zipped.flush(zlib.Z_SYNC_FLUSH))
        assert next(read_rows(stream, "-")).step == 7
