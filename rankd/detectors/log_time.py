"""The default rule: a change in log-time, against the reading at step/ρ, with a frozen reference and hysteresis."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple

from rankd.detectors.marks import PLAIN, Bars, counted, movement
from rankd.detectors.memory import Memory
from rankd.detectors.precision import NOT_READ, Precision
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
    bars: Bars = PLAIN
    """Of the reference."""

    def state(self) -> dict[str, Any]:
        known = {name: getattr(self, name) for name in ("step", "reference_step", "reference", "threshold", "num_back")}
        return known if self.bars == PLAIN else {**known, "bars": list(self.bars)}

    @classmethod
    def restored(cls, state: Mapping[str, Any]) -> Raised:
        return cls(**{**state, "bars": Bars(*state["bars"]) if "bars" in state else PLAIN})


class LogTimeDetector:
    """Fires when the level x (log of a metric, median of three readings) moved by more than θ against x(step/ρ).

    Training slows down as it goes on: most change happens in the first tenth of the steps, and a healthy layer changes
    about as much from step 1,000 to 1,150 as from 10,000 to 11,500. Hence no fixed baseline and no fixed look-back.

    * Firing: from the 5th reading on, the change exceeds θ in 3 readings in a row of one scale. The reference
      is frozen then: one that slides along forgets the fault. (`readings` holds these numbers.)
    * Resolved: 20 readings in a row within θ/2 of the reference, or on its good side.
    * Rebased (info): the last 20 levels lie within θ/2 of one another, beyond the reference. The level of that step
      then stands for all before it, so that the old one does not fire again and a further fall does.

    Of a change only that counts which is not within the errors of its two levels: `counted`. It is never more than the
    change itself, and all of it where readings have no error bars. Where a look-back is longer than it should be,
    because the tier did not give this metric for a while, it takes a change that is larger in proportion.

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

    def update(self, value: float | None, step: int, precision: Precision | None = None) -> Verdict | None:
        if value is None or not math.isfinite(value) or value <= 0:
            if precision is NOT_READ:
                self._memory.pass_by()
            return None
        log = math.log(value)
        self._memory.append(step, log, PLAIN if precision is None else Bars.of(log, precision))
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
            if memory.marks:
                change = counted(self._direction, change, memory.bars(place), memory.bars(-1))
            if change <= threshold * (memory.stretch(place, ratio) if memory.holes else 1.0):
                continue  # it cannot be told
            streaks[index] += 1
            if streaks[index] >= self._readings.on and change > largest:
                bars = memory.bars(place) if memory.marks else PLAIN
                raised = Raised(step, memory.steps[place], memory.levels[place], threshold, bars=bars)
                largest = change
        if raised is None:
            return None
        self._raised = raised
        detail = self._change(raised, level)
        if largest < self._direction * (level - raised.reference):
            detail += f"; at least {_percent(self._direction * largest)} % whatever the errors of measuring"
        return self._verdict("firing", raised, level, detail)

    def _follow(self, raised: Raised, step: int) -> Verdict | None:
        level = self._memory.levels[-1]
        last, enough = len(self._memory) - 1, self._readings.off
        raised.num_back = raised.num_back + 1 if self._beyond(raised, last) <= raised.threshold / 2 else 0
        if raised.num_back >= enough:
            detail = f"{self.metric} came back to {_number(level)} ({_number(raised.reference)} before it moved)"
            return self._end("resolved", raised, level, detail)
        if self._settled(raised):
            self._rebase_step = step
            return self._end("rebased", raised, level, f"{self._change(raised, level)}; it settled at this new level")
        return None

    def _settled(self, raised: Raised) -> bool:
        """Whether the last levels are near one another, and all of them beyond the reference."""
        memory, enough = self._memory, self._readings.off
        recent = memory.levels[-enough:]
        if len(recent) < enough:
            return False
        places = range(len(memory) - enough, len(memory))
        way = movement(recent, list(map(memory.bars, places))) if memory.marks else max(recent) - min(recent)
        return way <= raised.threshold / 2 and all(self._beyond(raised, place) > 0 for place in places)

    def _count_back(self, raised: Raised) -> int:
        """Of the readings since the firing, how many of the last in a row are near the reference."""
        place = len(self._memory)
        while place and self._memory.steps[place - 1] > raised.step:
            if self._beyond(raised, place - 1) > raised.threshold / 2:
                break
            place -= 1
        return len(self._memory) - place

    def _beyond(self, raised: Raised, place: int) -> float:
        """How far the level at `place` is beyond the reference, as far as it counts."""
        memory = self._memory
        change = self._direction * (memory.levels[place] - raised.reference)
        return counted(self._direction, change, raised.bars, memory.bars(place)) if memory.marks else change

    def _end(self, state: State, raised: Raised, level: float, detail: str) -> Verdict:
        self._raised = None
        self._streaks = [0] * len(self._scales)
        return self._verdict(state, raised, level, detail)

    def _change(self, raised: Raised, level: float) -> str:
        percent = _percent(level - raised.reference)
        verb = "fell" if level < raised.reference else "grew"
        values = f"{_number(raised.reference)} → {_number(level)}"
        return f"{self.metric} {verb} {percent} % ({values}), compared with step {raised.reference_step}"

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
            "raised": None if self._raised is None else self._raised.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.adopt(state)
        self._streaks = list(state["streaks"])
        self._raised = None if state["raised"] is None else Raised.restored(state["raised"])

    def adopt(self, state: Mapping[str, Any]) -> None:
        self._memory.restore(state)
        self._rebase_step = state["rebase_step"]


def _exp(level: float) -> float:
    return math.exp(min(level, 709.78))  # exp(log(x)) may round beyond the largest float


def _percent(change: float) -> str:
    return f"{abs(math.expm1(min(change, 700.0))) * 100:.3g}"


def _number(level: float) -> str:
    return f"{_exp(level):.4g}"
