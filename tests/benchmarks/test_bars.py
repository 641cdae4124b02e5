"""The bars hold in a small run of their benchmark, and the benchmark finds bars that are wrong on purpose."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "bars.py"
SMALL = ("--seeds", "8", "--shapes", "256x256", "--families", "gaussian", "trained_like", "--first-seed", "1")


def run(*options: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Its exit code; and name → row of how many true values were inside."""
    done = fork_server.run([sys.executable, SCRIPT, *SMALL, *options], capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    return done.returncode, {name: row for name, row in rows.items() if name.endswith("_coverage")}


def test_bars_hold() -> None:
    _, coverages = run()
    assert {name.split("_")[1] for name in coverages} == {"norms", "estimate"}, "no bars were judged in a tier"
    assert [row for row in coverages.values() if not row["ok"]] == []


@pytest.mark.parametrize("fault", [("--plant-shrink", "0.3"), ("--plant-shift", "1")], ids=["shrunk", "shifted"])
def test_wrong_bars_are_found(fault: tuple[str, str]) -> None:
    code, coverages = run("--tier", "estimate", *fault)
    assert code == 1
    assert [row for row in coverages.values() if not row["ok"]] != []
