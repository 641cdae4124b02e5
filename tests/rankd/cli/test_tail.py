import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fork_server
import numpy as np
import pytest
from typer.testing import CliRunner

from rankd.cli import app
from rankd.cli.tail import _default_positions

NAN, GOOD = (np.array(values, np.float32).tobytes() for values in ([np.nan, 1], [3, 4]))


@pytest.fixture
def url(serve: Callable[..., Any], raw_peer: Callable[..., Any], socket_dir: Path) -> Iterator[str]:
    """A daemon that watches two runs; in one of them a layer with a hostile name is non-finite, another came back."""
    daemon = serve("--url", f"ipc://{socket_dir}")
    for run in ("one", "two"):
        trainer = raw_peer(daemon.ready["push"], run)
        trainer.greet()
        for layer, step, values in (("w", 1, GOOD), ("\x1b[2J", 2, NAN), ("back", 2, NAN), ("back", 3, GOOD)):
            trainer.push(layer if run == "one" else "v", step, values, (1, 2))
            trainer.hear_end_of(layer if run == "one" else "v", step)
    yield f"ipc://{socket_dir}"
    assert daemon.end()[0] == 0


def tail(url: str, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rankd", "tail", "--url", url, "--timeout", "2.5", *options]
    return fork_server.run(command, capture_output=True, text=True, timeout=60)


def at_once(url: str, *each: list[str]) -> list[subprocess.CompletedProcess[str]]:
    """As many tails as there are lists of options. Most of what each does is wait for a line that does not come."""
    with ThreadPoolExecutor() as threads:
        return list(threads.map(lambda options: tail(url, *options), each))


def test_what_is_firing_comes_first_in_json_and_escaped_for_people(url: str) -> None:
    rows, lines, other = at_once(
        url, ["--json", "--run", "one", "--severity", "critical"], ["--run", "one"], ["--run", "another", "--json"]
    )
    assert (rows.returncode, rows.stderr) == (0, "")
    (alert,) = map(json.loads, rows.stdout.splitlines())
    assert (alert["rule"], alert["layer"], alert["run"], alert["state"]) == ("nonfinite", "\x1b[2J", "one", "firing")
    assert lines.stdout.startswith("CRITICAL one step 2 \\x1b[2J: ") and "\x1b" not in lines.stdout
    assert other.stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--severity", "loud"], "severity='loud'; expected one of info, warning, critical"),
        (["--exec", "true", "--json"], "--exec: expected neither"),
        (["--url", "tcp://127.0.0.1:1", "--key", "/absent.key"], "'/absent.key' cannot be read"),
        (["--url", "ipc:///tmp", "--run", "@x"], "expected @NAMESPACE/RUN"),
        (["--url", "ftp://x"], "url='ftp://x': expected ipc://DIR or tcp://HOST:PORT"),
    ],
)
def test_wrong_use_is_named(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["tail", *options])
    assert result.exit_code == 2 and words in result.stderr


def test_since_last_shows_what_came_since_and_nothing_twice(
    serve: Callable[..., Any], raw_peer: Callable[..., Any], socket_dir: Path, tmp_path: Path
) -> None:
    url = f"ipc://{socket_dir}"
    daemon = serve("--url", url)
    trainer = raw_peer(daemon.ready["push"], "one")
    trainer.greet()
    file = str(tmp_path / "positions.json")
    shown = []
    for step, options in ((1, ["--positions", file]), (2, ["--positions", file]), (3, ["--positions", file])):
        if step < 3:
            trainer.push(f"w{step}", step, NAN, (1, 2))
            trainer.hear_end_of(f"w{step}", step)
        result = tail(url, "--json", *options)
        assert (result.returncode, result.stderr) == (0, "")
        shown.append([json.loads(line)["layer"] for line in result.stdout.splitlines()])
    assert shown == [["w1"], ["w2"], []]
    assert daemon.end()[0] == 0


def test_exec_hands_each_alert_to_the_command_until_it_takes_it(url: str, tmp_path: Path) -> None:
    """The command fails the first time."""
    command = f"cat >> {tmp_path}/taken && test -e {tmp_path}/again || {{ touch {tmp_path}/again; exit 1; }}"
    result = tail(url, "--run", "one", "--severity", "critical", "--exec", command)
    assert result.returncode == 0 and "the sink did not take alert" in result.stderr
    ids = [json.loads(line)["alert_id"] for line in (tmp_path / "taken").read_text().splitlines()]
    assert len(ids) == 2 and len(set(ids)) == 1


def test_what_a_severity_hides_is_left_for_the_tail_that_shows_it(
    serve: Callable[..., Any], raw_peer: Callable[..., Any], socket_dir: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    """The end of an alert that was shown is none of that."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    url = f"ipc://{socket_dir}"
    daemon = serve("--url", url)
    trainer = raw_peer(daemon.ready["push"], "one")
    trainer.greet()

    def push(layer: str, step: int, values: bytes) -> None:
        trainer.push(layer, step, values, (1, 2))
        trainer.hear_end_of(layer, step)

    def shown(*each: list[str]) -> list[list[list[str]]]:
        results = at_once(url, *(["--json", "--since-last", *options] for options in each))
        assert [(result.returncode, result.stderr) for result in results] == [(0, "")] * len(each)
        rows = [map(json.loads, result.stdout.splitlines()) for result in results]
        return [[[row["layer"], row["state"], row["severity"]] for row in of_one] for of_one in rows]

    fired, ended = ["w", "firing", "critical"], ["w", "resolved", "info"]
    everything: list[str] = []
    critical, file = ["--severity", "critical"], ["--positions", str(tmp_path / "own")]
    assert shown(everything, critical) == [[], []]
    push("w", 1, NAN)
    assert shown(critical) == [[fired]]
    push("w", 2, GOOD)
    ends, both = shown(critical, everything)
    assert ends[-1][:2] == ended[:2]
    assert [row[:2] for row in both] == [fired[:2], ended[:2]]
    assert shown(everything, critical, file) == [[], [], []]
    other = tail(url, *file, "--severity", "critical")
    assert other.returncode == 2 and "is of a subscription to" in other.stderr and '"severity"' in other.stderr
    assert daemon.end()[0] == 0


def test_the_default_file_is_one_for_each_subscription(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("RANKD_URL", "ipc:///a")
    monkeypatch.delenv("RANKD_KEY", raising=False)
    ours = [
        _default_positions(url, None, None, None, run, severity)
        for url in (None, "ipc:///b")
        for run in ("r", "s")
        for severity in ("info", "critical")
    ]
    assert len(set(ours)) == 8 and {path.parent for path in ours} == {tmp_path / "rankd" / "tail"}
    assert _default_positions("ipc:///a", None, None, None, "r", "info") == ours[0]


def test_the_default_file_is_one_for_each_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    for name in ("alice", "bob"):
        options = ["--keys", str(tmp_path / "keys"), "-o", str(tmp_path / f"{name}.key")]
        assert CliRunner().invoke(app, ["keys", "new", name, *options]).exit_code == 0
    keys = [None, tmp_path / "alice.key", tmp_path / "bob.key"]
    assert len({_default_positions("tcp://127.0.0.1:7777", None, None, key) for key in keys}) == 3
    assert len({_default_positions("ipc:///a", None, None, key) for key in keys}) == 1, "which asks for none"
