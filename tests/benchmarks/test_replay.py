"""The benchmark of replay and restart runs and checks what it measures; how fast it is depends on the machine."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_rows_and_their_rivals(tmp_path: Path) -> None:
    (tmp_path / "ae.s0.jsonl.gz").symlink_to(ROOT / "benchmarks" / "traces" / "ae.s0.jsonl.gz")
    options = ["--layers", "6", "--checks", "20", "--points", "300", "--traces", str(tmp_path)]
    command = [sys.executable, ROOT / "benchmarks" / "replay.py", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1) and done.stderr == ""
    traces, synthetic, restart = map(json.loads, done.stdout.splitlines())
    assert (traces["name"], synthetic["name"], restart["name"]) == ("replay_traces", "replay_synthetic", "restart")
    assert (synthetic["num_rows"], restart["num_layers"], restart["points_per_layer"]) == (120, 6, 300)
    assert traces["num_rows"] == 3200
    assert all(row["ours"] > 0 and row["rival"] > 0 for row in (traces, synthetic))
