"""Measurement → alerts: one judge per run, layer and role."""

from __future__ import annotations

from rankd.judge import DetectConfig, Recall, RunJudges
from rankd.records import Alert, Measurement


class Detect:
    """Feeds each measurement to its layer's rules; an alert is a change of state, never a repeated one.

    With `recall` (rankd.judge.Recall) a layer goes on where its record ends; what that raises passes through.
    """

    def __init__(self, config: DetectConfig, recall: Recall | None = None) -> None:
        self._judges = RunJudges(config, recall)

    def __call__(self, measurement: Measurement) -> list[Alert]:
        return self._judges.update(measurement)

    def due(self, measurement: Measurement) -> bytes | None:
        """The state of the layer's judge, if it is to be recorded with `measurement`, its newest."""
        return self._judges.due(measurement.run, measurement.layer, measurement.role)

    def forget(self, run: str) -> None:
        self._judges.forget(run)
