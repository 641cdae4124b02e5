"""Measurements → alerts: every detector of every layer. Pure, so that the daemon and a replay give the same alerts."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from rankd.detectors import DETECTORS, Detector
from rankd.detectors.ema import EmaDropDetector, RankTrendDetector
from rankd.detectors.notices import make_notices
from rankd.records import Alert, Measurement, Verdict

EmaSeverity = Literal["info", "warning", "critical", "off"]

ADVICE = {
    "effective_rank_drop": "Look at what changed shortly before this step: learning rate, weight decay, precision or "
    "data; and at this layer's loss and gradient norm. A falling rank is not harm by itself.",
    "spectral_norm_growth": "Look at the learning rate, clipping and weight decay of this layer, and at the loss. "
    "A growing norm is not harm by itself.",
    "ema_drop": "Stable rank falls in most healthy runs too: compare with other layers and with effective_rank.",
    "nonfinite": "Look at the loss, gradient scaling and learning rate of the steps before; the last good checkpoint "
    "is older than this step.",
    "zero": "Check whether the layer is meant to be pruned, frozen or zero-initialised, and its weight decay.",
    "baseline_reset": "Nothing to do if the run was restarted or the layer rebuilt on purpose.",
}


@dataclass(frozen=True, slots=True)
class DetectConfig:
    """`ema` is the severity of `ema_drop`, info by default because it fires in most healthy runs."""

    ema: EmaSeverity = "info"
    ema_alpha: float = 0.1
    ema_threshold: float = 0.2
    ema_window: int = 100

    def __post_init__(self) -> None:
        if self.ema not in get_args(EmaSeverity):
            raise ValueError(f"ema is {self.ema!r}; expected one of {', '.join(get_args(EmaSeverity))}")
        try:
            RankTrendDetector(self.ema_alpha, self.ema_threshold, self.ema_window)
        except ValueError as error:
            raise ValueError(f"ema_alpha, ema_threshold or ema_window: {error}") from None

    def make_detectors(self) -> list[Detector]:
        factories = dict(DETECTORS)
        if self.ema == "off":
            del factories["ema_drop"]
        else:
            factories["ema_drop"] = partial(
                EmaDropDetector, self.ema, self.ema_alpha, self.ema_threshold, self.ema_window
            )
        return [make() for make in factories.values()]


DEFAULT_CONFIG = DetectConfig()


class LayerJudge:
    """All rules of one (run, layer, role, shape), fed its measurements in order of arrival.

    `predecessor`, the judge of the layer's former shape, hands on its counts, so that no alert id is used twice.
    """

    def __init__(
        self, first: Measurement, config: DetectConfig = DEFAULT_CONFIG, predecessor: LayerJudge | None = None
    ) -> None:
        self.run = first.run
        self.layer = first.layer
        self.role = first.role
        self.shape = first.shape
        self._detectors = config.make_detectors()
        self._notices = make_notices()
        self._last_step: int | None = None
        self._firing: dict[str, Alert] = {}
        self._num_raised: dict[str, int] = predecessor._num_raised if predecessor else {}

    @property
    def firing(self) -> list[Alert]:
        """The alerts that are on, as they were raised."""
        return list(self._firing.values())

    def update(self, measurement: Measurement) -> list[Alert]:
        """The changes of state that this measurement brings. One without a step or elements changes nothing, nor does
        a repeat of the last good step."""
        step = measurement.step
        if step is None or 0 in measurement.shape:
            return []
        if not measurement.finite or measurement.zero:
            return self._alerts([self._notices["zero" if measurement.finite else "nonfinite"].bad(step)], step)
        if step == self._last_step:
            return []
        went_back = self._last_step is not None and step < self._last_step
        verdicts = [notice.good(step, went_back) for notice in self._notices.values()]
        if went_back:
            verdicts += [detector.rewind(step) for detector in self._detectors]
            verdicts.append(_baseline_reset(f"the run went back from step {self._last_step} to step {step}"))
        self._last_step = step
        metrics = measurement.metrics
        verdicts += [detector.update(metrics.get(detector.metric), step) for detector in self._detectors]
        return self._alerts(verdicts, step)

    def succeed(self, predecessor: LayerJudge, step: int | None) -> list[Alert]:
        """Takes the place of the judge of the layer's former shape: ends its alerts and says so."""
        detail = f"the layer changed shape from {_times(predecessor.shape)} to {_times(self.shape)}"
        ended = [
            predecessor._alert(Verdict(alert.rule, "rebased", "info", alert.metric, None, alert.baseline, detail), step)
            for alert in predecessor.firing
        ]
        return [*ended, *self._alerts([_baseline_reset(detail)], step)]

    def _alerts(self, verdicts: list[Verdict | None], step: int | None) -> list[Alert]:
        return [self._alert(verdict, step) for verdict in verdicts if verdict is not None]

    def _alert(self, verdict: Verdict, step: int | None) -> Alert:
        raised = self._firing.pop(verdict.rule, None)
        name = self.layer if self.role == "weight" else f"{self.layer} ({self.role})"
        alert = Alert(
            alert_id=raised.alert_id if raised else self._new_id(verdict.rule, step),
            run=self.run,
            layer=self.layer,
            step=step,
            severity=verdict.severity,
            state=verdict.state,
            rule=verdict.rule,
            metric=verdict.metric,
            value=verdict.value,
            baseline=verdict.baseline,
            message=f"{name}: {verdict.detail}",
            advice=ADVICE.get(verdict.rule, ""),
        )
        if verdict.state == "firing":
            self._firing[verdict.rule] = alert
        return alert

    def _new_id(self, rule: str, step: int | None) -> str:
        """The same for the same history, in the daemon and in a replay; another for each time a rule fires."""
        count = self._num_raised[rule] = self._num_raised.get(rule, 0) + 1
        key = json.dumps([self.run, self.layer, self.role, list(self.shape), rule, step, count])
        return hashlib.sha256(key.encode()).hexdigest()[:16]


class RunJudges:
    """A LayerJudge for every (run, layer, role), replaced when the layer's shape changes."""

    def __init__(self, config: DetectConfig = DEFAULT_CONFIG) -> None:
        self._config = config
        self._runs: dict[str, dict[tuple[str, str], LayerJudge]] = {}

    def update(self, measurement: Measurement) -> list[Alert]:
        judges = self._runs.setdefault(measurement.run, {})
        key = (measurement.layer, measurement.role)
        former = judges.get(key)
        # Like going back, a change of shape is only believed from a good measurement: a bad one may overtake others.
        good = measurement.finite and not measurement.zero
        if former is not None and (former.shape == measurement.shape or not good):
            return former.update(measurement)
        judge = judges[key] = LayerJudge(measurement, self._config, former)
        alerts = [] if former is None else judge.succeed(former, measurement.step)
        return alerts + judge.update(measurement)

    def firing(self, run: str | None = None) -> list[Alert]:
        """The alerts that are on, of one run or of all."""
        runs = self._runs.values() if run is None else [self._runs.get(run, {})]
        return [alert for judges in runs for judge in judges.values() for alert in judge.firing]

    def forget(self, run: str) -> None:
        """Drops everything known of a run."""
        self._runs.pop(run, None)


def _baseline_reset(detail: str) -> Verdict:
    """Complete in itself: never in the set of firing alerts."""
    return Verdict("baseline_reset", "rebased", "info", None, None, None, detail)


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
