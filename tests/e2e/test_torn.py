"""No snapshot mixes two steps, whatever the optimizer writes meanwhile; benchmarks/torn.py says how that is seen."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import fork_server
import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "torn.py"


@pytest.mark.e2e
@pytest.mark.long
def test_no_snapshot_is_torn_and_live_weights_would_be() -> None:
    options = ["--pushes", "300", "--unfenced", "40", "--layers", "2", "--size", "384"]
    done = fork_server.run([sys.executable, BENCHMARK, *options], capture_output=True, text=True, timeout=300)
    rows = {row["name"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert done.returncode == 0, (rows, done.stderr)
    assert rows["torn_bfloat16"]["ours"] == 0 and rows["checked_bfloat16"]["ours"] >= 300
    assert rows["torn_without_fence"]["ours"] > 0
