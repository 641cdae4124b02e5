import json
import shutil
import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

from rankd.cli import app
from rankd.cli.runs import _age


def runs(*arguments: str, env: dict[str, str] | None = None) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["runs", *arguments], env={"RANKD_DATA": "", **(env or {})})
    return result.exit_code, result.stdout, result.stderr


def test_a_line_a_run(history: Path) -> None:
    code, out, _ = runs("--data", str(history))
    header, *lines = out.splitlines()
    assert code == 0 and header.split("  ")[0] == "run"
    assert {line.split()[0]: line.split()[1:4] for line in lines} == {
        "lm-42": ["2", "14", "22"],
        "@a/lm-42": ["1", "1", "1"],
        "@daemon": ["0", "0", "-"],
    }
    assert {line.split()[0]: line.split()[-1] for line in lines} == {"lm-42": "3", "@a/lm-42": "-", "@daemon": "1"}
    assert runs(env={"RANKD_DATA": str(history)})[1].splitlines()[0] == header


def test_json_rows_of_runs_and_layers(history: Path) -> None:
    rows = [json.loads(line) for line in runs("--data", str(history), "--json", "--run", "lm-*")[1].splitlines()]
    assert [(row["run"], row["num_layers"], row["num_firing"], row["last_step"]) for row in rows] == [
        ("lm-42", 2, 3, 22)
    ]
    layers = [json.loads(line) for line in runs("--data", str(history), "--json", "--layers")[1].splitlines()]
    assert {(row["run"], row["layer"], row["role"], row["num_measurements"]) for row in layers} == {
        ("lm-42", "blocks.0.w", "weight", 7),
        ("lm-42", "=1+1\x1b[2J,\r\n", "weight", 7),
        ("@a/lm-42", "w", "update", 1),
    }


def test_names_are_escaped_for_people(history: Path) -> None:
    code, out, _ = runs("--data", str(history), "--layers")
    assert code == 0 and "\x1b" not in out and "\\x1b[2J,\\x0d\\x0a" in out and len(out.splitlines()) == 4


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([], 2, "no --data DIR, no RANKD_DATA and no [serve] data in rankd.toml"),
        (["--data", "/nonexistent\x1b"], 2, "no history in /nonexistent\\x1b: expected history.db"),
    ],
)
def test_without_a_history(arguments: list[str], code: int, words: str) -> None:
    found, out, errors = runs(*arguments)
    assert (found, out) == (code, "") and words in errors


def test_the_data_directory_of_the_settings_file(
    history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `rankd serve` would have read it; --data and RANKD_DATA go before it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rankd.toml").write_text(f"[serve]\ndata = {str(history)!r}\n")
    (tmp_path / "rankd.toml").chmod(0o644)
    assert [json.loads(line)["run"] for line in runs("--json")[1].splitlines()] == ["@a/lm-42", "@daemon", "lm-42"]
    assert runs("--data", "/nonexistent")[0] == 2
    monkeypatch.setenv("RANKD_CONFIG", "off")
    assert runs()[0] == 2
    monkeypatch.setenv("RANKD_CONFIG", str(tmp_path / "none.toml"))
    assert "expected a TOML file" in runs()[2]


def test_nothing_found_is_a_problem(history: Path, tmp_path: Path) -> None:
    code, out, errors = runs("--data", str(history), "--run", "other*")
    assert (code, out) == (1, "") and "no run like 'other*'" in errors
    (tmp_path / "history.db").write_bytes(b"not a database, " * 100)
    code, _, errors = runs("--data", str(tmp_path))
    assert code == 1 and "damaged" in errors and "Traceback" not in errors


def test_a_run_of_which_nothing_is_left_is_not_listed(history: Path, tmp_path: Path) -> None:
    shutil.copy(history / "history.db", tmp_path)
    connection = sqlite3.connect(tmp_path / "history.db", isolation_level=None)
    connection.execute("UPDATE run SET first_time = NULL, last_time = NULL, last_step = NULL WHERE name = 'lm-42'")
    connection.close()
    listed = [line.split()[0] for line in runs("--data", str(tmp_path))[1].splitlines()[1:]]
    assert set(listed) == {"@a/lm-42", "@daemon"}


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0 s ago"), (-50, "0 s ago"), (119, "119 s ago"), (600, "10 min ago"), (9000, "2 h ago"), (9e5, "10 d ago")],
)
def test_age(seconds: float, words: str) -> None:
    assert _age(1000.0, 1000.0 + seconds) == words
    assert _age(None, 0.0) == "-"
