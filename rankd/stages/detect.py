"""Measurement → alerts: one judge per run, layer, role and shape."""

from __future__ import annotations

from rankd.judge import DetectConfig, RunJudges
from rankd.records import Alert, Measurement


class Detect:
    """Feeds each measurement to its layer's detectors; an alert is a change of state, never a repeated one."""

    def __init__(self, config: DetectConfig) -> None:
        self._judges = RunJudges(config)

    def __call__(self, measurement: Measurement) -> list[Alert]:
        return self._judges.update(measurement)

    def forget(self, run: str) -> None:
        self._judges.forget(run)
