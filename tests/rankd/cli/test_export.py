import csv
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
from typer.testing import CliRunner

from rankd.cli import app, formats
from rankd.records import METRIC_NAMES, Measurement
from rankd.store.reader import Reader

HOSTILE = "=1+1\x1b[2J,\r\n"


def export(data: Path, *arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["export", "lm-42", "--data", str(data), *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def recorded(history: Path) -> list[Measurement]:
    with Reader(history) as reader:
        return [measurement for _, measurement in reader.measurements("lm-42")]


def test_json_means_json_lines_as_with_every_verb_that_reads(history: Path) -> None:
    assert export(history, "--json") == export(history, "-o", "-")
    for wrong in ([], ["--json", "-o", "-"]):
        code, out, errors = export(history, *wrong)
        assert (code, out) == (2, "") and "expected either -o FILE or --json" in errors


@pytest.mark.parametrize("name", ["x.jsonl", "x.JSONL.gz", "-"])
def test_json_lines_are_the_same_measurements(
    history: Path, recorded: list[Measurement], tmp_path: Path, name: str
) -> None:
    file = tmp_path / name
    code, out, errors = export(history, "-o", "-" if name == "-" else str(file))
    assert (code, errors) == (0, "")
    if name != "-":
        assert out == ""
        out = gzip.decompress(file.read_bytes()).decode() if name.endswith("gz") else file.read_text()
    assert [Measurement.from_json(json.loads(line)) for line in out.splitlines()] == recorded


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_csv(history: Path, recorded: list[Measurement], tmp_path: Path, name: str) -> None:
    assert export(history, "-o", str(tmp_path / name))[0] == 0
    opened: Any = gzip.open if name.endswith("gz") else open
    with opened(tmp_path / name, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    names = {"blocks.0.w": "blocks.0.w", HOSTILE: "'=1+1\\x1b[2J,\\x0d\\x0a"}
    assert [(row["layer"], int(row["step"])) for row in rows] == [(names[m.layer], m.step) for m in recorded]


@pytest.mark.parametrize("row_group", [3, 20_000])
def test_parquet(
    history: Path, recorded: list[Measurement], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row_group: int
) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'rankd[parquet]'")
    monkeypatch.setattr(formats, "ROW_GROUP", row_group)
    assert export(history, "-o", str(tmp_path / "x.parquet"))[0] == 0
    table = parquet.read_table(tmp_path / "x.parquet")
    assert str(table.schema.field("step").type) == "int64" and str(table.schema.field("finite").type) == "bool"
    rows = table.to_pylist()
    for row in rows:
        row.update(json.loads(row.pop("extra") or "{}"))
    assert rows == [measurement.to_json() for measurement in recorded]
    assert {str(table.schema.field(name).type) for name in METRIC_NAMES} == {"double"}


def test_an_empty_table_has_its_columns(history: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed: pip install 'rankd[parquet]'")
    formats.write_parquet([], tmp_path / "x.parquet")
    assert parquet.read_table(tmp_path / "x.parquet").column_names == list(formats.COLUMNS)


def test_some_of_it(history: Path) -> None:
    _, out, _ = export(history, "-o", "-", "--current", "--layer", "b*")
    assert [json.loads(line)["step"] for line in out.splitlines()] == [0, 7, 14, 22]


def test_a_file_is_replaced_only_when_asked_to(history: Path, tmp_path: Path) -> None:
    file = tmp_path / "x.jsonl"
    file.write_text("mine")
    code, _, errors = export(history, "-o", str(file))
    assert code == 2 and "is there already" in errors and file.read_text() == "mine"
    assert export(history, "-o", str(file), "--force")[0] == 0
    assert len(file.read_text().splitlines()) == 14 and list(tmp_path.iterdir()) == [file]


def test_half_a_file_is_never_seen(history: Path, tmp_path: Path) -> None:
    """The disk has no room for all of it: what was there stays, and nothing else."""
    file = tmp_path / "x.jsonl"
    file.write_text("mine")
    limited = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
    command = [sys.executable, "-c", f"{limited}from rankd.cli import app; app()", "export", "lm-42"]
    options = ["--data", str(history), "-o", str(file), "--force"]
    done = fork_server.run([*command, *options], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "") and "x.jsonl: File too large" in done.stderr
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


def test_names_for_terminals_and_spreadsheets() -> None:
    """Nothing that a terminal would obey, and no formula; numbers stay numbers."""
    names = ["a\rb", "\x1b[2J", '=1+1"', "+a", "-a", "@a/lm", "\ta", "a=b", 'a"b', "a,b", " a ", "é", "a" * 2000]
    shown = ["a\\x0db", "\\x1b[2J", "'=1+1\"", "'+a", "'-a", "'@a/lm", "'\\x09a", *names[7:]]
    written = io.StringIO(newline="")
    formats.write_csv([{"layer": name, "step": -1.5} for name in names], written, ["layer", "step", "=x"])
    table = list(csv.DictReader(io.StringIO(written.getvalue(), newline="")))
    assert [(row["layer"], row["step"], row["'=x"]) for row in table] == [(name, "-1.5", "") for name in shown]


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [
        ("x.xlsx", 2, "no known format; expected a name that ends in .parquet, .csv, .csv.gz, .jsonl, .jsonl.gz, or -"),
        ("no/x.csv", 2, "is no directory"),
        ("dir.csv", 2, "is there already"),
    ],
)
def test_wrong_use_is_named(history: Path, tmp_path: Path, name: str, code: int, words: str) -> None:
    (tmp_path / "dir.csv").mkdir()
    found, out, errors = export(history, "-o", str(tmp_path / name), "--force")
    assert (found, out) == (code, "") and words in errors


def test_an_unknown_run_leaves_no_file(history: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["export", "lm", "--data", str(history), "-o", str(tmp_path / "x.csv")])
    assert result.exit_code == 1 and "no run 'lm'" in result.stderr and list(tmp_path.iterdir()) == []


def test_without_pyarrow_it_says_what_is_missing(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    code, _, errors = export(history, "-o", str(tmp_path / "x.parquet"))
    assert code == 2 and "pip install 'rankd[parquet]'" in errors and list(tmp_path.iterdir()) == []
