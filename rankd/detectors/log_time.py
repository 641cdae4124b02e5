"""The default rule: a change in log-time, against the reading at step/ρ, with a frozen reference and hysteresis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

from rankd.detectors.memory import Memory
from rankd.records import Severity, State, Verdict

MEMORY_RATIO = 1.5
MEMORY_MARGIN = 1.3
"""Memory reaches back to step/1.5, further where a scale does: the default look-back is at most 1.15, the rest is for
runs resumed from a checkpoint."""


class Scale(NamedTuple):
    """Compare with the reading at step/ratio; `threshold` is the change of the logarithm that counts."""

    ratio: float
    threshold: float


@dataclass(frozen=True, slots=True)
class Readings:
    """How many readings it takes: before anything is judged, in a row to fire, in a row to end."""

    minimum: int = 5
    on: int = 3
    off: int = 20


DEFAULT_READINGS = Readings()


@dataclass(slots=True)
class Raised:
    """A firing alert: its frozen reference, and for how many readings in a row the value has been back near it."""

    step: int
    reference_step: int
    reference: float
    threshold: float
    num_back: int = 0


class LogTimeDetector:
    """Fires when the level x (log of a metric, median of three readings) moved by more than θ against x(step/ρ).

    Training slows down as it goes on: most change happens in the first tenth of the steps, and a healthy layer changes
    about as much from step 1,000 to 1,150 as from 10,000 to 11,500. Hence no fixed baseline and no fixed look-back.

    * Firing: from the 5th reading on, the change exceeds θ in 3 readings in a row of one scale. The reference
      is frozen then: one that slides along forgets the fault. (`readings` holds these numbers.)
    * Resolved: 20 readings in a row within θ/2 of the reference, or on its good side.
    * Rebased (info): the last 20 levels lie within θ/2 of one another, beyond the reference. The level of that step
      then stands for all before it, so that the old one does not fire again and a further fall does.

    `direction` is -1 to watch for a fall and +1 for growth. A verdict's value and baseline are in the
    metric's own unit.
    """

    def __init__(
        self,
        rule: str,
        metric: str,
        direction: int,
        scales: Sequence[Scale],
        severity: Severity = "warning",
        readings: Readings = DEFAULT_READINGS,
    ) -> None:
        self.rule = rule
        self.metric = metric
        self._direction = direction
        self._scales = tuple(scales)
        self._severity = severity
        self._readings = readings
        reach = max(MEMORY_RATIO, *(MEMORY_MARGIN * scale.ratio for scale in self._scales))
        self._memory = Memory(reach, max(readings.off, readings.minimum))
        self._streaks = [0] * len(self._scales)
        self._rebase_step: int | None = None
        self._raised: Raised | None = None

    def update(self, value: float | None, step: int) -> Verdict | None:
        if value is None or not math.isfinite(value) or value <= 0:
            return None
        self._memory.append(step, math.log(value))
        return self._watch(step) if self._raised is None else self._follow(self._raised, step)

    def rewind(self, step: int) -> Verdict | None:
        self._memory.truncate(step)
        self._streaks = [0] * len(self._scales)
        if self._rebase_step is not None and self._rebase_step >= step:
            self._rebase_step = None
        if self._raised is None:
            return None
        if self._raised.step < step:
            self._raised.num_back = self._count_back(self._raised)
            return None
        raised, self._raised = self._raised, None
        last = self._memory.at(step)
        detail = f"the run went back to step {step}, before step {raised.step} where {self.metric} had raised this"
        return self._verdict("rebased", raised, last.level if last else None, detail)

    def _watch(self, step: int) -> Verdict | None:
        if len(self._memory) < self._readings.minimum:
            return None
        memory, streaks = self._memory, self._streaks
        level = memory.levels[-1]
        raised, largest = None, 0.0
        for index, (ratio, threshold) in enumerate(self._scales):
            place = memory.place(step / ratio if self._rebase_step is None else max(step / ratio, self._rebase_step))
            change = 0.0 if place < 0 else self._direction * (level - memory.levels[place])
            if change <= threshold:
                streaks[index] = 0
                continue
            streaks[index] += 1
            if streaks[index] >= self._readings.on and change > largest:
                reference = memory.levels[place]
                raised, largest = Raised(step, memory.steps[place], reference, threshold), change
        if raised is None:
            return None
        self._raised = raised
        return self._verdict("firing", raised, level, self._change(raised, level))

    def _follow(self, raised: Raised, step: int) -> Verdict | None:
        level = self._memory.levels[-1]
        near, enough = raised.threshold / 2, self._readings.off
        raised.num_back = raised.num_back + 1 if self._beyond(raised, level) <= near else 0
        if raised.num_back >= enough:
            detail = f"{self.metric} came back to {_number(level)} ({_number(raised.reference)} before it moved)"
            return self._end("resolved", raised, level, detail)
        recent = self._memory.levels[-enough:]
        settled = len(recent) >= enough and max(recent) - min(recent) <= near
        if settled and all(self._beyond(raised, past) > 0 for past in recent):
            self._rebase_step = step
            return self._end("rebased", raised, level, f"{self._change(raised, level)}; it settled at this new level")
        return None

    def _count_back(self, raised: Raised) -> int:
        """Of the readings since the firing, how many of the last in a row are near the reference."""
        place = len(self._memory)
        while place and self._memory.steps[place - 1] > raised.step:
            if self._beyond(raised, self._memory.levels[place - 1]) > raised.threshold / 2:
                break
            place -= 1
        return len(self._memory) - place

    def _beyond(self, raised: Raised, level: float) -> float:
        return self._direction * (level - raised.reference)

    def _end(self, state: State, raised: Raised, level: float, detail: str) -> Verdict:
        self._raised = None
        self._streaks = [0] * len(self._scales)
        return self._verdict(state, raised, level, detail)

    def _change(self, raised: Raised, level: float) -> str:
        percent = abs(math.expm1(min(level - raised.reference, 700.0))) * 100
        verb = "fell" if level < raised.reference else "grew"
        values = f"{_number(raised.reference)} → {_number(level)}"
        return f"{self.metric} {verb} {percent:.3g} % ({values}), compared with step {raised.reference_step}"

    def _verdict(self, state: State, raised: Raised, level: float | None, detail: str) -> Verdict:
        severity: Severity = "info" if state == "rebased" else self._severity
        value = None if level is None else _exp(level)
        return Verdict(self.rule, state, severity, self.metric, value, _exp(raised.reference), detail)

    @property
    def settings(self) -> tuple[Any, ...]:
        return self._scales, *astuple(self._readings)

    def state(self) -> dict[str, Any]:
        return {
            **self._memory.state(),
            "streaks": list(self._streaks),
            "rebase_step": self._rebase_step,
            "raised": None if self._raised is None else asdict(self._raised),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.adopt(state)
        self._streaks = list(state["streaks"])
        self._raised = None if state["raised"] is None else Raised(**state["raised"])

    def adopt(self, state: Mapping[str, Any]) -> None:
        self._memory.restore(state)
        self._rebase_step = state["rebase_step"]


def _exp(level: float) -> float:
    return math.exp(min(level, 709.78))  # exp(log(x)) may round beyond the largest float


def _number(level: float) -> str:
    return f"{_exp(level):.4g}"
