import csv
import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
from typer.testing import CliRunner

from rankd.cli import app
from rankd.config import HistoryConfig
from rankd.records import METRIC_NAMES, Measurement
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd.store.writer import Writer

HOSTILE = "=1+1\x1b[2J,\r\n"


def query(data: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["query", "--data", str(data), *arguments])
    return result.exit_code, result.stdout, result.stderr


def rows(data: Path, *arguments: str) -> list[dict[str, Any]]:
    code, out, errors = query(data, "lm-42", "--json", *arguments)
    assert (code, errors) == (0, "")
    return [json.loads(line) for line in out.splitlines()]


def test_every_recorded_row_once_as_the_measurement_it_was(history: Path) -> None:
    with Reader(history) as reader:
        assert rows(history) == [measurement.to_json() for _, measurement in reader.measurements("lm-42")]
    steps = [row["step"] for row in rows(history, "--layer", "blocks.*")]
    assert steps == [0, 7, 14, 21, 28, 14, 22]


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (["--from", "14", "--to", "21"], [14, 21, 14]),
        (["--current"], [0, 7, 14, 22]),
        (["--every", "10"], [0, 14, 21, 14, 22]),
        (["--every", "7"], [0, 7, 14, 21, 28, 14, 22]),
        (["--every", "100"], [0]),
        (["--role", "weight", "--from", "29"], []),
        (["--from", "28", "--to", str((1 << 63) - 1)], [28]),
    ],
)
def test_which_rows(history: Path, options: list[str], steps: list[int]) -> None:
    for layer in ("blocks.0.w", "=1*"):
        assert [row["step"] for row in rows(history, "--layer", layer, *options)] == steps


def test_only_some_metrics(history: Path) -> None:
    first, *_, last = rows(history, "--metric", "spectral_norm", "--metric", "loss", "--layer", "blocks.*")
    assert list(first) == ["run", "step", "layer", "role", "rows", "cols", "finite", "spectral_norm", "loss"]
    assert (first["spectral_norm"], first["loss"], last["loss"]) == (1.1, None, 0.1 + 0.2)


def test_csv_reads_back(history: Path) -> None:
    result = CliRunner().invoke(app, ["query", "--data", str(history), "lm-42", "--csv"])
    table = list(csv.DictReader(io.StringIO(result.stdout_bytes.decode(), newline="")))
    expected = rows(history)
    assert [row["layer"] for row in table] == ["blocks.0.w", "'=1+1\\x1b[2J,\\x0d\\x0a"] * 7
    assert "\x1b" not in result.stdout and "\r" not in result.stdout
    assert [json.loads(row["shape"]) for row in table] == [[4, 3, 2]] * 14
    assert [row["finite"] for row in table].count("false") == 1
    for name in METRIC_NAMES:
        assert [float(row[name]) if row[name] else None for row in table] == [row[name] for row in expected]
    assert json.loads(table[-1]["extra"]) == {"loss": 0.1 + 0.2} and table[0]["extra"] == ""
    _, out, _ = query(history, "lm-42", "--csv", "--metric", "stable_rank", "--layer", "b*")
    assert out.splitlines()[:2] == [
        "run,step,layer,role,rows,cols,finite,stable_rank",
        "lm-42,0,blocks.0.w,weight,4,6,true,1.1",
    ]


def test_alerts_as_they_were_published(history: Path) -> None:
    with Reader(history) as reader:
        first = reader.streams()[-1]
    alerts = rows(history, "--alerts")
    told = [(row["stream_id"], row["seq"], row["alert_id"], row["layer"]) for row in alerts]
    assert told == [(first, 1, "0", HOSTILE), (first, 2, "7", HOSTILE), ("5ec0" * 4, 1, "whole", None)]
    assert [row["alert_id"] for row in rows(history, "--alerts", "--layer", "b*")] == ["whole"]
    assert [row["alert_id"] for row in rows(history, "--alerts", "--to", "6")] == ["0"]
    _, out, _ = query(history, "lm-42", "--alerts")
    assert out.startswith("WARNING lm-42 step 0 =1+1\\x1b[2J,\\x0d\\x0a: fell") and "\x1b" not in out
    _, out, _ = query(history, "lm-42", "--alerts", "--csv")
    assert len(list(csv.DictReader(io.StringIO(out, newline="")))) == 3


def test_spectra(history: Path) -> None:
    found = rows(history, "--spectra")
    assert [(row["step"], row["top"]) for row in found] == [(7, [2.0, 1.0, 0.5, 0.25])] * 2
    assert sum(found[0]["counts"]) == 4 and found[0]["low"] < found[0]["high"]
    assert query(history, "lm-42", "--spectra", "--layer", "b*")[1] == "step 7 blocks.0.w: top=2,1,0.5,0.25\n"
    header = query(history, "lm-42", "--spectra", "--csv")[1].splitlines()[0]
    assert header == "run,layer,role,step,tier,top,low,high,counts"


def test_errors_stand_beside_what_was_asked_for(tmp_path: Path) -> None:
    """The newest row is exact, and has no bars to ask for; an older one has."""
    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    bar = {"stable_rank_low": 2.5, "stable_rank_high": 3.5}
    for n, extra in enumerate(({"tier": "estimate", **bar}, {"tier": "exact"}), 1):
        metrics = dict.fromkeys(METRIC_NAMES, 3.0)
        writer.submit(Entry(n, Measurement("lm-42", "w", n, (4, 6), True, False, metrics, extra=extra)))
    assert writer.flush(30) and writer.close(30)
    lines = query(tmp_path, "lm-42", "--metric", "stable_rank")[1].splitlines()
    assert lines == ["step 1 w: stable_rank=3 [2.5, 3.5] (estimate)", "step 2 w: stable_rank=3"]
    found = rows(tmp_path, "--metric", "stable_rank")
    assert [(row["tier"], row.get("stable_rank_low")) for row in found] == [("estimate", 2.5), ("exact", None)]
    assert query(tmp_path, "lm-42", "--metric", "stable_rank_low")[0] == 0


def test_lines_for_people(history: Path) -> None:
    _, out, _ = query(history, "lm-42", "--layer", "b*", "--from", "0", "--to", "14")
    assert out.splitlines() == [
        "step 0 blocks.0.w: stable_rank=1.1 effective_rank=1.1 spectral_norm=1.1",
        "step 7 blocks.0.w: stable_rank=3.1 effective_rank=3.1 spectral_norm=3.1",
        "step 14 blocks.0.w: stable_rank=- effective_rank=- spectral_norm=- non-finite",
        "step 14 blocks.0.w: stable_rank=11.1 effective_rank=11.1 spectral_norm=11.1",
    ]
    assert query(history, "@a/lm-42")[1].startswith("step 1 w (update): ")
    assert "\x1b" not in query(history, "lm-42")[1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["lm-43"], 1, "no run 'lm-43' in "),
        (["lm-43"], 1, "near it: lm-42"),
        (["lm-42", "--layer", "block.0.w"], 1, "no layer of lm-42 is like it; near it: blocks.0.w"),
        (["lm-42", "--role", "update"], 1, "there are weight"),
        (["lm-42", "--metric", "stable"], 2, "'stable': no such metric; there are stable_rank, effective_rank,"),
        (["lm-42", "--json", "--csv"], 2, "expected one of them"),
        (["lm-42", "--alerts", "--spectra"], 2, "expected one of them"),
        (["lm-42", "--alerts", "--every", "2"], 2, "--every does not go with --alerts"),
        (["lm-42", "--spectra", "--current"], 2, "--current does not go with --spectra"),
        (["lm-42", "--from", "3", "--to", "2"], 2, "--from 3 --to 2: expected steps in order"),
        (["lm-42", "--every", "0"], 2, "--every"),
        (["lm-42", "--every", "9" * 23], 2, "--every"),
        (["lm-42", "--from", "9" * 23], 2, "--from"),
        (["lm-42", "--to", str(1 << 63)], 2, "--to"),
        (["lm-42", "--from", "-1"], 2, "--from"),
    ],
)
def test_wrong_use_is_named(history: Path, arguments: list[str], code: int, words: str) -> None:
    found, out, errors = query(history, *arguments)
    assert (found, out) == (code, "") and words in errors


@pytest.mark.parametrize("form", ["--json", "--csv", "--alerts"])
def test_a_reader_who_has_seen_enough(history: Path, form: str) -> None:
    """Output that is closed at once: no traceback, and no problem."""
    command = [sys.executable, "-m", "rankd", "query", "lm-42", form, "--data", str(history)]
    with fork_server.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 0
