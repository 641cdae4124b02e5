"""The demo keeps its promise: it names the layer that was hurt, and it is silent where none was."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.long]
LIMIT_SECONDS = 400  # ends a demo that hangs; what it takes is the business of whoever runs it


def run_demo(*options: str) -> tuple[int, list[dict[str, Any]]]:
    command = [sys.executable, "-m", "rankd", "demo", "--json", *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=LIMIT_SECONDS)
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_the_hurt_layer_and_no_other_is_named_after_the_cause() -> None:
    code, (*alerts, summary) = run_demo()
    assert code == 0
    raised = [alert for alert in alerts if alert["state"] == "firing"]
    assert {alert["layer"] for alert in raised} == {summary["cause_layer"]}
    assert all(alert["step"] > summary["cause_step"] for alert in raised)
    assert (summary["first_alert_step"], summary["first_alert_layer"]) == (raised[0]["step"], raised[0]["layer"])
    assert summary["delay_checks"] == (raised[0]["step"] - summary["cause_step"]) // 10
    assert summary["num_layers"] == 14 and summary["num_pushes"] == summary["steps"] // 10 + 1


def test_the_same_training_without_the_fault_ends_without_a_warning() -> None:
    """Up to the cause the other one is the same training, and is to be silent too."""
    code, lines = run_demo("--healthy", "--steps", "700")
    assert code == 0
    assert len(lines) == 1 and lines[0]["num_warnings"] == 0 and lines[0]["cause_step"] is None
