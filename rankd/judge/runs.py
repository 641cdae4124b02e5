"""The judges of all layers of all runs, brought back from the history where there is one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from rankd.detectors import DEFAULT_CONFIG, DetectConfig
from rankd.judge.layer import STATE_EVERY, LayerJudge
from rankd.judge.state import StateError
from rankd.records import Alert, Measurement

log = logging.getLogger("rankd.judge")


class Recall(Protocol):
    """What is recorded of a layer that this process has not seen, or has forgotten."""

    def __call__(
        self, run: str, layer: str, role: str, *, whole: bool = False
    ) -> tuple[bytes | None, Iterable[Measurement]] | None:
        """The last state of its judge, and its measurements after that one, in order; with `whole`, None and all its
        measurements. None where nothing is recorded. What it raises passes through `update`, which may be called again.
        """


class RunJudges:
    """A LayerJudge for every (run, layer, role). With `recall`, a layer goes on where its record ends, bit for bit."""

    def __init__(self, config: DetectConfig = DEFAULT_CONFIG, recall: Recall | None = None) -> None:
        self._config = config
        self._recall = recall
        self._runs: dict[str, dict[tuple[str, str], LayerJudge]] = {}

    def update(self, measurement: Measurement) -> list[Alert]:
        judges = self._runs.setdefault(measurement.run, {})
        key = (measurement.layer, measurement.role)
        judge = judges.get(key)
        if judge is not None:
            return judge.update(measurement)
        judge = self._begin(measurement.run, measurement.layer, measurement.role)
        alerts = judge.reconfigure(self._config, measurement) + judge.update(measurement)
        judges[key] = judge
        return alerts

    def state(self, run: str, layer: str, role: str) -> bytes:
        """What `recall` is to give back, as of the layer's last measurement. KeyError for a layer never seen."""
        return self._runs[run][layer, role].state()

    def due(self, run: str, layer: str, role: str) -> bytes | None:
        """To be asked after each measurement: the layer's state if it is to be recorded with this one. It is with the
        first, with the first under other settings, and with every 64th from then on."""
        judge = self._runs[run][layer, role]
        if judge.num_since_state < STATE_EVERY:
            return None
        judge.num_since_state = 0
        return judge.state()

    def firing(self, run: str | None = None) -> list[Alert]:
        """The alerts that are on, of one run or of all."""
        runs = self._runs.values() if run is None else [self._runs.get(run, {})]
        return [alert for judges in runs for judge in judges.values() for alert in judge.firing]

    def forget(self, run: str) -> None:
        """Drops everything known of a run. With `recall` it comes back with the run's next measurements."""
        self._runs.pop(run, None)

    def _begin(self, run: str, layer: str, role: str) -> LayerJudge:
        """As it was after the last recorded measurement of the layer."""
        if self._recall is None or (recalled := self._recall(run, layer, role)) is None:
            return self._new(run, layer, role)
        state, measurements = recalled
        judge = None
        if state is not None:
            try:
                judge = LayerJudge.restored(run, layer, role, state)
            except StateError as error:
                log.warning("layer=%r run=%r: %s; judged anew from all its measurements", layer, run, error)
                _, measurements = self._recall(run, layer, role, whole=True) or (None, ())
        judge = judge or self._new(run, layer, role)
        for measurement in measurements:
            judge.update(measurement)  # its alerts are in the record
        return judge

    def _new(self, run: str, layer: str, role: str) -> LayerJudge:
        judge = LayerJudge(run, layer, role, self._config)
        judge.num_since_state = STATE_EVERY
        return judge
