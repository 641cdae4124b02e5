"""The rules on recorded trainings, through the benchmark that scores them."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "benchmarks" / "detection.py"
TRACES = ROOT / "benchmarks" / "traces"
SOME = [
    f"{name}.s0"
    for name in ("teach_r3", "mlp_nan1", "mlp_resume", "mlp_lrjump", "mlp_wdjump", "mlp_r1drift", "ssl_vicoff")
]

spec = importlib.util.spec_from_file_location("benchmark_detection", SCRIPT)
assert spec is not None and spec.loader is not None
detection = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = detection
spec.loader.exec_module(detection)

ALL_LABELS = json.loads((TRACES / "labels.json").read_text())
LABELS = {name: ALL_LABELS[name] for name in SOME}


def test_the_default_rule_finds_each_fault_and_leaves_the_healthy_alone(tmp_path: Path) -> None:
    (tmp_path / "labels.json").write_text(json.dumps(LABELS))
    for name in LABELS:
        (tmp_path / f"{name}.jsonl.gz").symlink_to(TRACES / f"{name}.jsonl.gz")
    command = [sys.executable, SCRIPT, "--traces", tmp_path, "--every", "1", "5"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = {(row["every"], row["rule"]): row for row in map(json.loads, done.stdout.splitlines())}
    for every in (1, 5):
        row = rows[every, "effective_rank_drop"]
        assert (row["healthy_runs"], row["healthy_runs_alerted"]) == (3, 0)
        assert (row["fault_runs"], row["fault_runs_found"]) == (3, 3)
        assert (row["must_not_claim_runs"], row["must_not_claim_runs_alerted"]) == (1, 0)
        assert rows[every, "alarms"]["healthy_runs_alerted"] == 0
        assert rows[every, "nonfinite"]["healthy_alerts"] == 1
    assert rows[1, "effective_rank_drop"]["median_delay_checks"] == 3
    assert rows[1, "ema_drop"]["healthy_runs_alerted"] == 3, "why ema_drop speaks at severity info"


def test_every_alert_ends_at_most_once_and_under_its_own_id() -> None:
    for name, label in LABELS.items():
        firing: dict[str, str] = {}
        ended: set[str] = set()
        for alert in detection.replay(TRACES / f"{name}.jsonl.gz", label, 1).alerts:
            if alert.state == "firing":
                assert alert.alert_id not in firing
                firing[alert.alert_id] = alert.rule
            else:
                assert firing[alert.alert_id] == alert.rule
                assert alert.alert_id not in ended
                ended.add(alert.alert_id)


def test_the_non_finite_trace_gives_its_notice_and_its_end() -> None:
    name = "mlp_nan1.s0"
    alerts = detection.replay(TRACES / f"{name}.jsonl.gz", LABELS[name], 1).alerts
    notices = [(alert.state, alert.layer, alert.step) for alert in alerts if alert.rule == "nonfinite"]
    assert notices == [("firing", "inp", 1200), ("resolved", "inp", 1209)]


def test_a_wrong_directory_is_named(tmp_path: Path) -> None:
    missing = tmp_path / "none"
    done = subprocess.run([sys.executable, SCRIPT, "--traces", missing], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert f"is {missing}; expected a directory" in done.stderr
