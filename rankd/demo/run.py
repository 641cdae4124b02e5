"""The story of `rankd demo`: a daemon and a trainer, each a process of its own, and what the alerts said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

RUN = "demo"
URGENT = ("warning", "critical")
"""The severities that a person should look at."""

MIN_STEPS = 100
"""The trainer's warm-up."""


@dataclass(slots=True)
class Story:
    """What happened: the trainer's own summary, and the alerts in order of arrival."""

    healthy: bool
    every_steps: int
    summary: dict[str, Any] = field(default_factory=dict)
    alerts: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def warnings(self) -> list[Mapping[str, Any]]:
        """Alerts of severity warning or critical, as they were raised."""
        return [a for a in self.alerts if a["state"] == "firing" and a["severity"] in URGENT]

    @property
    def told_rightly(self) -> bool:
        """Healthy: no warning at all. Else: the first warning came after the cause and names the hurt layer."""
        if self.healthy or not self.warnings:
            return self.healthy and not self.warnings
        first = self.warnings[0]
        return bool(first["layer"] == self.summary["cause_layer"] and first["step"] >= self.summary["cause_step"])

    def closing(self) -> dict[str, Any]:
        """The last JSON object. `delay_checks` counts the pushes from the cause to the first alert."""
        first = self.warnings[0] if self.warnings else None
        delay_steps = first["step"] - self.summary["cause_step"] if first and not self.healthy else None
        return {
            "ok": self.told_rightly,
            **self.summary,
            "first_alert_step": first["step"] if first else None,
            "first_alert_layer": first["layer"] if first else None,
            "first_alert_rule": first["rule"] if first else None,
            "delay_steps": delay_steps,
            "delay_checks": None if delay_steps is None else delay_steps // self.every_steps,
            "num_warnings": len(self.warnings),
            "num_layers_warned": len({alert["layer"] for alert in self.warnings}),
            "num_info_alerts": sum(a["state"] == "firing" and a["severity"] not in URGENT for a in self.alerts),
        }


def trainer_lines(url: str, every_steps: int, healthy: bool, steps: int | None) -> Iterator[dict[str, Any]]:
    """Runs the trainer and yields what it says, a JSON object at a time. RuntimeError where it fails."""
    command = [sys.executable, "-m", "rankd.demo.train", "--run", RUN, "--url", url, "--every-steps", str(every_steps)]
    command += ["--healthy"] if healthy else []
    command += ["--steps", str(steps)] if steps is not None else []
    environment = {**os.environ, "RANKD_ECHO": "0", "RANKD_MODE": "online"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as trainer:
        assert trainer.stdout is not None
        try:
            for line in trainer.stdout:
                yield json.loads(line)
        except BaseException:  # we were told to end
            trainer.terminate()
            raise
    if trainer.returncode:
        raise RuntimeError(f"the trainer ended with exit code {trainer.returncode}")
