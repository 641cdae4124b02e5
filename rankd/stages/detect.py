"""Measurement → alerts: one judge per run, layer and role."""

from __future__ import annotations

from collections.abc import Iterator

from rankd.judge import DetectConfig, Key, LayerJudge, Recall, RunJudges, recall_judge
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

    def unknown(self, measurement: Measurement) -> Iterator[Key]:
        """The layers that `measurement` is about and that have not been seen, each to be taken before the next is asked
        for: its own, and the parts that it has no longer."""
        own = (measurement.run, measurement.layer, measurement.role)
        if not self._judges.knows(*own):
            yield own
        yield from (part for part in self._judges.lost(measurement) if not self._judges.knows(*part))

    def recall(self, layer: Key, recall: Recall) -> LayerJudge:
        """What it was like at the end of its record. On any thread: nothing here changes."""
        return recall_judge(*layer, self._config, recall)

    def take(self, judge: LayerJudge) -> None:
        self._judges.take(judge)

    def due(self, measurement: Measurement) -> bytes | None:
        """The state of the layer's judge, if it is to be recorded with `measurement`, its newest."""
        return self._judges.due(measurement.run, measurement.layer, measurement.role)

    def forget(self, run: str) -> None:
        self._judges.forget(run)
