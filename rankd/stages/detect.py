"""Measurement → alerts: one judge per run, layer and role."""

from __future__ import annotations

from rankd.judge import DetectConfig, LayerJudge, Recall, RunJudges, recall_judge
from rankd.records import Alert, Measurement


class Detect:
    """Feeds each measurement to its layer's rules; an alert is a change of state, never a repeated one.

    A layer that is not known goes on where its record ends, if what `recall` gives is taken before.
    """

    def __init__(self, config: DetectConfig) -> None:
        self._config = config
        self._judges = RunJudges(config)

    def __call__(self, measurement: Measurement) -> list[Alert]:
        return self._judges.update(measurement)

    def knows(self, measurement: Measurement) -> bool:
        """Whether the layer of `measurement` has been seen."""
        return self._judges.knows(measurement.run, measurement.layer, measurement.role)

    def recall(self, measurement: Measurement, recall: Recall) -> LayerJudge:
        """What the layer of `measurement` was like at the end of its record. On any thread: nothing here changes."""
        return recall_judge(measurement.run, measurement.layer, measurement.role, self._config, recall)

    def take(self, judge: LayerJudge) -> None:
        self._judges.take(judge)

    def due(self, measurement: Measurement) -> bytes | None:
        """The state of the layer's judge, if it is to be recorded with `measurement`, its newest."""
        return self._judges.due(measurement.run, measurement.layer, measurement.role)

    def forget(self, run: str) -> None:
        self._judges.forget(run)
