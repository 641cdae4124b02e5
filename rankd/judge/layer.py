"""The rules of one layer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection

from rankd.detectors import DEFAULT_CONFIG, DetectConfig, make_detectors, make_notices, precision_of
from rankd.judge.advice import advice_on
from rankd.judge.parts import Parts
from rankd.judge.state import StateError, pack_alert, pack_state, unpack_alert, unpack_state
from rankd.records import REPORTED, Alert, Measurement, Verdict

STATE_EVERY = 64
"""Measurements of a layer from one recorded state to the next: half as many, on average, are fed again after a start,
and a state of 118 kB (10,000 readings) costs 1.8 kB for each of them to write."""


class LayerJudge:
    """All rules of one (run, layer, role), fed its measurements in order of arrival."""

    def __init__(self, run: str, layer: str, role: str = "weight", config: DetectConfig = DEFAULT_CONFIG) -> None:
        self.run = run
        self.layer = layer
        self.role = role
        self.config = config
        self.num_since_state = 0
        """Measurements since the state was last recorded."""
        self.parts = Parts()
        self._shape: tuple[int, ...] | None = None
        self._firing: dict[str, Alert] = {}
        self._num_raised: dict[str, int] = {}
        self._make_rules()
        self._last_step: int | None = None
        self._split = False
        """Whether the parts of the layer are judged in its place, as layers of their own."""

    @property
    def firing(self) -> list[Alert]:
        """The alerts that are on, as they were raised."""
        return list(self._firing.values())

    def update(self, measurement: Measurement) -> list[Alert]:
        """The changes of state that this measurement brings. One without a step or elements changes nothing, nor does
        a repeat of the last good step. Of what a trainer reports the shape need not be known."""
        self.num_since_state += 1
        self.parts.update(measurement)
        # Like going back, a change of shape is only believed from a good measurement: a bad one may overtake others.
        good = measurement.finite and not measurement.zero
        ended: list[Alert] = []
        is_shapeless = 0 in measurement.shape and measurement.method == REPORTED
        if measurement.shape != self._shape and (good or self._shape is None) and not is_shapeless:
            ended = self._reshape(measurement)
        if measurement.step is None or (0 in measurement.shape and not is_shapeless):
            return ended
        verdicts = self._judge_good(measurement) if good else self._judge_bad(measurement)
        return ended + self._alerts(verdicts, measurement) if verdicts else ended

    def reconfigure(self, config: DetectConfig, measurement: Measurement) -> list[Alert]:
        """Goes on under `config`, from `measurement` on. Rules whose settings changed start anew from the readings they
        remember, new ones from none; the alerts of the former, and of rules that are off now, end."""
        if config is self.config:
            return []
        if config == self.config:
            self.config = config
            return []
        detectors, notices = self._detectors, self._notices
        self.config = config
        self._make_rules()
        self.num_since_state = STATE_EVERY  # the older state is one under the older settings
        goes_on = self._notices.keys() & notices.keys()
        for rule in goes_on:
            self._notices[rule].restore(notices[rule].state())
        for rule in self._detectors.keys() & detectors.keys():
            former, detector = detectors[rule], self._detectors[rule]
            if former.settings == detector.settings:
                goes_on.add(rule)
                detector.restore(former.state())
            else:
                detector.adopt(former.state())
        return self._end(self._firing.keys() - goes_on, "the settings of this rule changed", measurement)

    def end(self, detail: str, measurement: Measurement) -> list[Alert]:
        """Nothing will come any more of what is judged here: `measurement`, another layer's, says so. Should something
        come all the same, it begins anew."""
        ended = self._end(self._firing, detail, measurement)
        self.begin_anew()
        return ended

    def begin_anew(self) -> None:
        """Forgets its readings and what is on; not which ids it gave."""
        self._firing.clear()
        self._forget_readings()
        self.num_since_state = STATE_EVERY  # the older state would bring all that back

    def state(self) -> bytes:
        """All of this, for `restored`: some 20 bytes for each reading that the rules remember."""
        state = {
            "config": self.config.recorded(),
            "shape": self._shape,
            "last_step": self._last_step,
            "firing": [pack_alert(alert) for alert in self._firing.values()],
            "num_raised": self._num_raised,
            **({"split": True} if self._split else {}),
            **({"parts": self.parts.present} if self.parts.present else {}),
            "notices": {rule: notice.state() for rule, notice in self._notices.items()},
        }
        return pack_state(state, {rule: detector.state() for rule, detector in self._detectors.items()})

    @classmethod
    def restored(cls, run: str, layer: str, role: str, data: bytes) -> LayerJudge:
        """The judge whose `state` gave `data`, under the settings that it had: both go on alike, bit for bit. Raises
        StateError for bytes that are no state of this version."""
        state, detectors = unpack_state(data)
        try:
            config = DetectConfig(**state["config"])
        except (TypeError, ValueError) as error:
            raise StateError(f"the state of a layer has settings of another version: {error}") from None
        judge = cls(run, layer, role, config)
        judge._shape = None if state["shape"] is None else tuple(state["shape"])
        judge._last_step = state["last_step"]
        judge._firing = {alert.rule: alert for alert in map(unpack_alert, state["firing"])}
        judge._num_raised = state["num_raised"]
        judge._split = state.get("split", False)
        judge.parts.present = state.get("parts", {})
        for rule, notice in judge._notices.items():
            if rule in state["notices"]:
                notice.restore(state["notices"][rule])
        for rule, detector in judge._detectors.items():
            if rule in detectors:  # else it is newer than the state
                detector.restore(detectors[rule])
        return judge

    def _make_rules(self) -> None:
        config = self.config.of_role(self.role)
        self._detectors, self._notices = make_detectors(config), make_notices(config, self.role)

    def _judge_bad(self, measurement: Measurement) -> list[Verdict]:
        notice = self._notices.get("zero" if measurement.finite else "nonfinite")
        verdict = None if notice is None else notice.bad(_step(measurement))
        return [] if verdict is None else [verdict]

    def _judge_good(self, measurement: Measurement) -> list[Verdict]:
        step, last_step = _step(measurement), self._last_step
        if step == last_step:
            return []
        went_back = last_step is not None and step < last_step
        self._last_step = step
        verdicts = self._see(measurement, went_back)
        if measurement.extra.get("parts"):
            return verdicts + self._leave_to_parts()
        self._split = False
        detectors = self._detectors.values()
        if went_back:
            rewound = [detector.rewind(step) for detector in detectors]
            reset = self._baseline_reset(f"the run went back from step {last_step} to step {step}")
            verdicts += [verdict for verdict in (*rewound, reset) if verdict is not None]
        metrics = measurement.metrics
        for detector in detectors:
            metric = detector.metric
            verdict = detector.update(metrics.get(metric), step, precision_of(measurement, metric))
            if verdict is not None:
                verdicts.append(verdict)
        return verdicts

    def _see(self, measurement: Measurement, went_back: bool) -> list[Verdict]:
        """What a good measurement says to the notices: good, or that some of its experts are all zero."""
        num_zero = _num_zero_parts(measurement)
        if not num_zero and not self._firing:
            return []
        step, notices = _step(measurement), dict(self._notices)
        verdicts = []
        if num_zero and (zero := notices.pop("zero", None)) is not None:
            seen = f"{num_zero} of its experts {'is' if num_zero == 1 else 'are'} all zero"
            verdicts.append(zero.partly(step, seen, went_back))
        verdicts += [notice.good(step, went_back) for notice in notices.values()]
        return [verdict for verdict in verdicts if verdict is not None]

    def _leave_to_parts(self) -> list[Verdict]:
        """The first measurement whose parts are rows of their own ends what was judged of the whole; later, the whole
        would begin anew."""
        if self._split:
            return []
        self._split = True
        verdicts = self._endings(self._detectors, "its parts are judged from here on, as layers of their own")
        self._detectors = make_detectors(self.config.of_role(self.role))
        return verdicts

    def _reshape(self, measurement: Measurement) -> list[Alert]:
        """The layer has another shape, or its first: another matrix, with alert ids of its own."""
        former, shape = self._shape, measurement.shape
        if former is None:
            self._shape = shape
            return []
        detail = f"the layer changed shape from {_times(former)} to {_times(shape)}"
        ended = self._end(self._firing, detail, measurement)
        self._shape = shape
        self._forget_readings()
        reset = self._baseline_reset(detail)
        return ended if reset is None else [*ended, *self._alerts([reset], measurement)]

    def _forget_readings(self) -> None:
        self._make_rules()
        self._last_step, self._split = None, False

    def _end(self, rules: Collection[str], detail: str, measurement: Measurement) -> list[Alert]:
        return self._alerts(self._endings(rules, detail), measurement)

    def _endings(self, rules: Collection[str], detail: str) -> list[Verdict]:
        firing = [alert for alert in self.firing if alert.rule in rules]
        return [Verdict(on.rule, "rebased", "info", on.metric, None, on.baseline, detail) for on in firing]

    def _baseline_reset(self, detail: str) -> Verdict | None:
        """Complete in itself: never in the set of firing alerts."""
        severity = self.config.severity("baseline_reset")
        return None if severity == "off" else Verdict("baseline_reset", "rebased", severity, None, None, None, detail)

    def _alerts(self, verdicts: list[Verdict], measurement: Measurement) -> list[Alert]:
        return [self._alert(verdict, measurement) for verdict in verdicts]

    def _alert(self, verdict: Verdict, measurement: Measurement) -> Alert:
        raised = self._firing.pop(verdict.rule, None)
        name = self.layer if self.role == "weight" else f"{self.layer} ({self.role})"
        alert = Alert(
            alert_id=raised.alert_id if raised else self._new_id(verdict.rule, measurement.step),
            run=self.run,
            layer=self.layer,
            step=measurement.step,
            severity=verdict.severity,
            state=verdict.state,
            rule=verdict.rule,
            metric=verdict.metric,
            value=verdict.value,
            baseline=verdict.baseline,
            message=f"{name}: {verdict.detail}",
            advice=advice_on(verdict.rule, self.role),
            time=measurement.time or 0.0,
            role=self.role,
        )
        if verdict.state == "firing":
            self._firing[verdict.rule] = alert
        return alert

    def _new_id(self, rule: str, step: int | None) -> str:
        """The same for the same history, in the daemon and in a replay; another for each time a rule fires."""
        count = self._num_raised[rule] = self._num_raised.get(rule, 0) + 1
        key = json.dumps([self.run, self.layer, self.role, list(self._shape or ()), rule, step, count])
        return hashlib.sha256(key.encode()).hexdigest()[:16]


def _step(measurement: Measurement) -> int:
    assert measurement.step is not None  # update has seen to it
    return measurement.step


def _num_zero_parts(measurement: Measurement) -> int:
    number = measurement.extra.get("num_zero_parts", 0)
    return number if type(number) is int and number > 0 else 0


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
