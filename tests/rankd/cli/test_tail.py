import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from rankd.cli import app

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
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_what_is_firing_comes_first_in_json_and_escaped_for_people(url: str) -> None:
    rows = tail(url, "--json", "--run", "one", "--severity", "critical")
    assert (rows.returncode, rows.stderr) == (0, "")
    (alert,) = map(json.loads, rows.stdout.splitlines())
    assert (alert["rule"], alert["layer"], alert["run"], alert["state"]) == ("nonfinite", "\x1b[2J", "one", "firing")
    lines = tail(url, "--run", "one").stdout
    assert lines.startswith("CRITICAL one step 2 \\x1b[2J: ") and "\x1b" not in lines
    assert tail(url, "--run", "another", "--json").stdout == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--severity", "loud"], "--severity 'loud': expected one of info, warning, critical"),
        (["--url", "ftp://x"], "url='ftp://x': expected ipc://DIR or tcp://HOST:PORT"),
    ],
)
def test_wrong_use_is_named(options: list[str], words: str) -> None:
    result = CliRunner().invoke(app, ["tail", *options])
    assert result.exit_code == 2 and words in result.stderr
