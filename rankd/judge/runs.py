"""The judges of all layers of all runs, brought back from the history where there is one."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Protocol

from rankd.detectors import DEFAULT_CONFIG, DetectConfig
from rankd.judge.layer import STATE_EVERY, LayerJudge
from rankd.judge.state import StateError
from rankd.parts import part_name, whole_name
from rankd.records import Alert, Measurement

log = logging.getLogger("rankd.judge")

Key = tuple[str, str, str]
"""(run, layer, role)."""


class Recall(Protocol):
    """What is recorded of a layer that this process has not seen, or has forgotten."""

    def __call__(
        self, run: str, layer: str, role: str, *, whole: bool = False
    ) -> tuple[bytes | None, Iterable[Measurement]] | None:
        """The last state of its judge, and its measurements after that one, in order; with `whole`, None and all its
        measurements. None where nothing is recorded. What it raises passes through."""


class RunJudges:
    """A LayerJudge for every (run, layer, role). One that was recalled and taken before its layer's first measurement
    goes on where the layer's record ends, bit for bit; others begin anew."""

    def __init__(self, config: DetectConfig = DEFAULT_CONFIG) -> None:
        self._config = config
        self._runs: dict[str, dict[tuple[str, str], LayerJudge]] = {}

    def update(self, measurement: Measurement) -> list[Alert]:
        """The alerts of its layer, and the ends of those of parts that the layer has no longer."""
        run, layer, role = measurement.run, measurement.layer, measurement.role
        judges = self._runs.setdefault(run, {})
        judge = judges.get((layer, role))
        if judge is None:
            judge = judges[layer, role] = _new_judge(run, layer, role, self._config)
        if self._comes_back(measurement):  # its record does not know that its alerts were ended
            judge.begin_anew()
        lost = [judges[part, role] for _, part, _ in self.lost(measurement) if (part, role) in judges]
        alerts = judge.reconfigure(self._config, measurement) + judge.update(measurement)
        for part in lost:
            alerts += part.end(f"{layer} has no such part any more: another split rule, or another shape", measurement)
        return alerts

    def lost(self, measurement: Measurement) -> list[Key]:
        """The parts that the layer of `measurement`, its next, had until now and has no longer: recall them before."""
        run, layer, role = measurement.run, measurement.layer, measurement.role
        judge = self._runs.get(run, {}).get((layer, role))
        names = [] if judge is None else judge.parts.lost(measurement)
        return [(run, part_name(layer, name), role) for name in names]

    def _comes_back(self, part: Measurement) -> bool:
        """Whether this is the first row of a part that its layer had no longer."""
        layer = whole_name(part.layer)
        whole = self._runs[part.run].get((layer, part.role))
        if whole is None or part.extra.get("part_of") != layer:
            return False
        return whole.parts.present.get(part.layer[len(layer) + 1 :]) is False

    def knows(self, run: str, layer: str, role: str) -> bool:
        """Whether the layer has a judge: it is too late to recall one."""
        return (layer, role) in self._runs.get(run, {})

    def take(self, judge: LayerJudge) -> None:
        """Go on with a judge that was recalled, unless its layer has one by now."""
        self._runs.setdefault(judge.run, {}).setdefault((judge.layer, judge.role), judge)

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
        """Drops everything known of a run."""
        self._runs.pop(run, None)


def recall_judge(run: str, layer: str, role: str, config: DetectConfig, recall: Recall) -> LayerJudge:
    """The layer's judge as it was after its last recorded measurement, under the settings it had then; under `config`
    where nothing is recorded."""
    recalled = recall(run, layer, role)
    if recalled is None:
        return _new_judge(run, layer, role, config)
    state, measurements = recalled
    judge = None
    if state is not None:
        try:
            judge = LayerJudge.restored(run, layer, role, state)
        except StateError as error:
            log.warning("layer=%r run=%r: %s; judged anew from all its measurements", layer, run, error)
            _, measurements = recall(run, layer, role, whole=True) or (None, ())
    judge = judge or _new_judge(run, layer, role, config)
    for measurement in measurements:
        judge.update(measurement)  # its alerts are in the record
    return judge


def _new_judge(run: str, layer: str, role: str, config: DetectConfig) -> LayerJudge:
    judge = LayerJudge(run, layer, role, config)
    judge.num_since_state = STATE_EVERY
    return judge
