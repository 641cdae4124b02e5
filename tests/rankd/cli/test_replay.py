import gzip
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from rankd.cli import app
from rankd.config import HistoryConfig
from rankd.judge import RunJudges
from rankd.records import Measurement
from rankd.store.entries import Entry
from rankd.store.writer import Writer


def row(step: int | None, effective_rank: float | None = 100.0, **changes: Any) -> dict[str, Any]:
    metrics = {"stable_rank": 10.0, "effective_rank": effective_rank, "spectral_norm": 1.0}
    return {"run": "lm", "step": step, "layer": "h.0", "rows": 8, "cols": 8, **metrics, **changes}


def collapse(**changes: Any) -> list[dict[str, Any]]:
    """Falls from 1200 on: fires at 1203, settles at 1220."""
    return [row(step, 100.0 if step < 1200 else 85.0, **changes) for step in range(1000, 1240)]


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    content = "".join(json.dumps(each) + "\n" for each in rows).encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return str(path)


def replay(*arguments: str, stdin: bytes | None = None, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["replay", *arguments], input=stdin, env={"RANKD_DATA": ""})
    assert result.exit_code == exit_code, result.output
    return result


def rows_of(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def events(result: Result) -> list[tuple[str, str, str, int]]:
    return [(alert["run"], alert["rule"], alert["state"], alert["step"]) for alert in rows_of(result)]


DROP = [("lm", "effective_rank_drop", "firing", 1203), ("lm", "effective_rank_drop", "rebased", 1220)]


def test_alerts_as_json_and_for_people(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", collapse(time=12.5))
    result = replay(file, "--json")
    assert events(result) == DROP
    first = rows_of(result)[0]
    assert (first["time"], first["seq"], first["stream_id"], first["schema"]) == (12.5, 1, "", 1)
    assert replay(file, "--json").stdout_bytes == result.stdout_bytes
    assert replay(file).stdout.splitlines()[0] == (
        "WARNING lm step 1203 h.0: effective_rank fell 15 % (100 → 85), compared with step 1145"
    )


def test_many_files_many_runs_and_stdin_in_their_order(tmp_path: Path) -> None:
    rows = collapse()
    first = write(tmp_path / "a.jsonl.gz", [each for one in rows[:150] for each in (one, {**one, "run": "other"})])
    rest = "".join(json.dumps(each) + "\n" for each in rows[150:]).encode()
    last = write(tmp_path / "b.jsonl", [row(5, run="third", finite=False)])
    result = replay(first, "-", last, "--json", stdin=rest)
    assert events(result) == [*DROP, ("third", "nonfinite", "firing", 5)], "one run may lie in several files"


def test_only_some_runs_layers_and_severities(tmp_path: Path) -> None:
    bad = [row(1300, None, layer="h.1", finite=False), row(1300, None, run="x", finite=False)]
    file = write(tmp_path / "a.jsonl", [*collapse(), *bad])
    assert events(replay(file, "--json", "--run", "l?")) == [*DROP, ("lm", "nonfinite", "firing", 1300)]
    assert events(replay(file, "--json", "--layer", "*.0", "--run", "lm", "--run", "y")) == DROP
    assert events(replay(file, "--json", "--severity", "critical", "--layer", "h.1")) == [
        ("lm", "nonfinite", "firing", 1300)
    ]
    assert events(replay(file, "--json", "--severity", "warning", "--layer", "h.0", "--run", "lm")) == DROP, (
        "the end of what was shown, whose severity is info"
    )


def test_settings_from_a_file_and_before_it_from_the_command_line(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", collapse())
    config = tmp_path / "rankd.toml"
    config.write_text('[serve]\nhttp = "off"\n[detect]\neffective_rank_drop = "critical"\non_readings = 5\n')
    (fired, _) = rows_of(replay(file, "--json", "--config", str(config)))
    assert (fired["severity"], fired["step"]) == ("critical", 1205)
    (fired, _) = rows_of(replay(file, "--json", "--config", str(config), "--set", "on_readings=1"))
    assert (fired["severity"], fired["step"]) == ("critical", 1201)
    for off in ("effective_rank_drop=off", 'effective_rank_drop="off"', "effective_rank_drop_scales=[[1.05,0.5]]"):
        assert replay(file, "--set", off).stdout == ""


def test_settings_of_the_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without --config those that `rankd serve` would read here, and a word about it."""
    file = write(tmp_path / "a.jsonl", collapse())
    monkeypatch.chdir(tmp_path)
    settings = tmp_path / "rankd.toml"
    settings.write_text('[serve]\nhttp = "off"\n[detect]\non_readings = 5\n')
    settings.chmod(0o644)
    result = replay(file, "--json")
    assert rows_of(result)[0]["step"] == 1205
    assert result.stderr == f"rankd: [detect] of {settings.resolve()}\n"
    plain = replay(file, "--json", "--config", "off")
    assert (events(plain), plain.stderr) == (DROP, "")


def test_summary(tmp_path: Path) -> None:
    quiet = [row(step, run="quiet") for step in range(7)]
    file = write(tmp_path / "a.jsonl", [*collapse(), *quiet])
    assert replay(file, "--summary").stdout.splitlines()[2:] == [
        "lm: 240 measurements, effective_rank_drop 1 firing, 1 rebased",
        "quiet: 7 measurements, no alerts",
    ]
    assert rows_of(replay(file, "--summary", "--json"))[2:] == [
        {
            "summary": {
                "run": "lm",
                "num_measurements": 240,
                "rules": {"effective_rank_drop": {"firing": 1, "resolved": 0, "rebased": 1}},
            }
        },
        {"summary": {"run": "quiet", "num_measurements": 7, "rules": {}}},
    ]


def test_the_first_bad_line_ends_it_after_what_came_before(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write(file, collapse())
    file.write_bytes(file.read_bytes() + b'{"run": "lm"}\n' + json.dumps(row(1300, None, finite=False)).encode()[:-9])
    result = replay(str(file), "--json", exit_code=2)
    assert events(result) == DROP
    assert f"rankd: {file}:241: step is missing; expected at least run, step, " in result.stderr
    result = replay(str(file), "--json", "--skip-bad", exit_code=1)
    assert events(result) == DROP
    assert f"rankd: 2 bad lines skipped, the first: {file}:241: step is missing" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing\x1b"], "'nothing\\x1b': no such file; expected a file, -, or with --data DIR a run"),
        (["{dir}"], "Is a directory; expected a file of JSON lines"),
        (["-", "--severity", "loud"], "--severity 'loud': expected one of info, warning, critical"),
        (["-", "--set", "ema"], "--set 'ema': expected KEY=VALUE"),
        (["-", "--set", "emma=3"], "detect.emma=3: no such setting; expected one of baseline_reset, "),
        (["-", "--set", "ema=loud"], "detect.ema is 'loud'; expected one of info, warning, critical, off"),
        (["-", "--set", "on_readings=3\nx=4"], "detect.on_readings='3\\nx=4': expected an integer"),
        (["-", "--set", "ema_window=3.5"], "detect.ema_window=3.5: expected an integer"),
        (["-", "--set", "spectral_norm_growth_scales=3"], "detect.spectral_norm_growth_scales=3: expected a list"),
        (["-", "--set", "spectral_norm_growth_scales=[3]"], "detect.spectral_norm_growth_scales is [3]; expected 1 to"),
        (["-", "--config", "{dir}/none.toml"], "expected a TOML file; "),
        (["some run", "--data", "{dir}"], "history"),
        (["long" * 100], "no such file; expected a file, -, or with --data"),
    ],
)
def test_wrong_use_is_named(tmp_path: Path, arguments: list[str], words: str) -> None:
    result = CliRunner().invoke(
        app, ["replay", *(each.replace("{dir}", str(tmp_path)) for each in arguments)], input=""
    )
    assert result.exit_code == 2
    assert words in result.stderr


def test_a_detect_that_is_no_table_is_named(tmp_path: Path) -> None:
    config = tmp_path / "rankd.toml"
    config.write_text("detect = 3\n")
    assert "detect=3; expected a table" in replay("-", "--config", str(config), exit_code=2).stderr


def test_a_run_in_the_history(tmp_path: Path) -> None:
    judges, numbers = RunJudges(), Counter[str]()
    writer = Writer(tmp_path, HistoryConfig(), lambda entries: None, lambda error: None)
    writer.start()
    recorded = []
    rows = [*collapse(time=9.0), row(1240, None, finite=False, time=10.5), row(1241, layer="h.1", time=11.0)]
    for n, each in enumerate(rows, 1):
        measurement = Measurement.from_json(each)
        alerts = []
        for alert in judges.update(measurement):
            numbers["lm"] += 1
            alerts.append((numbers["lm"], alert))
            recorded.append(alert.published(writer.stream_id, numbers["lm"], alert.time).to_json())
        writer.submit(Entry(n, measurement, tuple(alerts)))
    assert writer.flush(30)
    assert rows_of(replay("lm", "--data", str(tmp_path), "--json")) == recorded
    assert len(recorded) == 3
    assert replay("lm", "--data", str(tmp_path), "--layer", "h.1").stdout == ""
    unknown = replay("lm2", "--data", str(tmp_path), exit_code=1)
    assert f"'lm2': no such file, and no run 'lm2' in {tmp_path}; near it: lm" in unknown.stderr
    assert "no history in" in replay("lm", "--data", str(tmp_path / "none"), exit_code=2).stderr
    published = CliRunner().invoke(app, ["query", "lm", "--alerts", "--json", "--data", str(tmp_path)])
    assert published.stdout == replay("lm", "--data", str(tmp_path), "--json").stdout, "keys in the same order"
    assert writer.close(30)


def test_a_reader_who_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    bad = [row(step, None, layer=f"h.{step}", finite=False) for step in range(3000)]
    file = write(tmp_path / "a.jsonl", bad)
    command = f"{sys.executable} -m rankd replay {file} --json | head -n 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["rule"] == "nonfinite"


def test_help_names_the_table() -> None:
    assert CliRunner().invoke(app, ["replay", "--help"]).stdout.count("[detect]") == 2
