"""The readings of a layer's metric, as far back as a rule in log-time may look."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from rankd.detectors.marks import PLAIN, Bars, Marks, median

MEDIAN_READINGS = 3
CUT_EVERY = 8
"""Readings from one look for stale ones to the next."""

THINNED_RATIO = 1.005
"""Of the steps of readings that are kept beyond reach: a tenth of the shortest look-back of the default rule."""


HOLE_RATIO = 1.02
"""Of the step after a hole to that before it. Smaller ones hardly lengthen a look-back; a run has few larger ones."""


class Reading(NamedTuple):
    step: int
    level: float


class Memory:
    """The readings a detector may still need, in order of step. `append` is O(1) amortised, `at` O(log n).

    It keeps those back to step/`reach`, and the last `num_kept` in any case. Older ones matter only to a run that goes
    back further than that: of them it keeps those that lie THINNED_RATIO apart, with the levels that they had.
    Readings without error bars cost nothing for those of others.
    """

    def __init__(self, reach: float, num_kept: int) -> None:
        self._reach = reach
        self._num_kept = num_kept
        self.steps = array("q")
        self.logs = array("d")
        self.levels = array("d")
        """x(s): the median of the last three logs up to s."""
        self.gaps = array("f")
        """Of the levels, where a reading was corrected: `Bars.gap`. Else empty."""
        self.marks = Marks()
        self.holes = array("q")
        """Steps of readings after which the layer was measured for a while, but not this."""
        self._passed = False
        self._num_thinned = 0

    def __len__(self) -> int:
        return len(self.steps)

    def append(self, step: int, log: float, bars: Bars = PLAIN) -> None:
        steps, logs = self.steps, self.logs
        if steps and step <= steps[-1]:
            raise ValueError(f"step is {step}; expected one after {steps[-1]} (rewind first)")
        if self._passed:
            self._passed = False
            if step >= steps[-1] * HOLE_RATIO:
                self.holes.append(steps[-1])
        steps.append(step)
        logs.append(log)
        self.levels.append(median(logs[-MEDIAN_READINGS:]))
        if bars is not PLAIN or self.marks:
            self._append_gap(self.marks.append(step, logs[-MEDIAN_READINGS:], bars))
        if len(steps) % CUT_EVERY == 0:
            self._cut(step)

    def _append_gap(self, gap: float) -> None:
        if gap or self.gaps:
            self.gaps.extend([0.0] * (len(self) - 1 - len(self.gaps)))
            self.gaps.append(gap)

    def pass_by(self) -> None:
        """The layer was measured, but not this of it."""
        self._passed = bool(self.steps)

    def stretch(self, place: int, ratio: float) -> float:
        """How many times as far back as step/`ratio`, in log-time, the reading at `place` lies for a hole after it."""
        step, holes = self.steps[place], self.holes
        hole = bisect_left(holes, step)
        if hole == len(holes) or holes[hole] != step:
            return 1.0
        return max(1.0, math.log(self.steps[-1] / max(1, step)) / math.log(ratio))

    def bars(self, place: int) -> Bars:
        """Of the level at `place`."""
        bars = self.marks.at(self.steps[place])
        return bars._replace(gap=self.gaps[place]) if self.gaps else bars

    def _cut(self, step: int) -> None:
        """Thin what is beyond reach. The last reading not after the horizon stays, since sparse readings look it up,
        and so do the last ones. An eighth or more at a time makes the move of what is left cheap."""
        stale = min(bisect_right(self.steps, step / self._reach) - 1, len(self) - self._num_kept)
        if (stale - self._num_thinned) * 8 < len(self):
            return
        steps, logs, levels, gaps = self.steps, self.logs, self.levels, self.gaps
        kept = self._num_thinned
        next_step = steps[kept - 1] * THINNED_RATIO if kept else -math.inf
        for place in range(kept, stale):
            if steps[place] >= next_step:
                steps[kept], logs[kept], levels[kept] = steps[place], logs[place], levels[place]
                if gaps:
                    gaps[kept] = gaps[place]
                next_step = steps[kept] * THINNED_RATIO
                kept += 1
        for column in (steps, logs, levels, gaps):
            del column[kept:stale]
        self._num_thinned = kept

    def place(self, step: float) -> int:
        """Of the last reading not after `step`; -1 where there is none."""
        return bisect_right(self.steps, step) - 1

    def at(self, step: float) -> Reading | None:
        """The last reading not after `step`."""
        place = self.place(step)
        return None if place < 0 else Reading(self.steps[place], self.levels[place])

    def truncate(self, step: int) -> None:
        """Drops the readings of `step` and later."""
        start = bisect_left(self.steps, step)
        for column in (self.steps, self.logs, self.levels, self.gaps):
            del column[start:]
        self._num_thinned = min(self._num_thinned, start)
        del self.holes[bisect_left(self.holes, step) :]
        self._passed = self._passed and start > 0
        if self.marks:
            self.marks.truncate(step, self.bars(-1) if start else PLAIN, start)
            if not self.marks:
                self.gaps = array("f")

    def state(self) -> dict[str, Any]:
        """`steps` (int64) and `logs` (float64) as little-endian bytes. Of the levels only those that rest on readings
        which are no longer here: the others follow from the logs. Of bars and holes nothing where there were none."""
        further: dict[str, Any] = {}
        if self.gaps:
            further["gaps"] = np.asarray(self.gaps).astype("<f4", copy=False).tobytes()
        if self.holes or self._passed:
            further |= {"holes": list(self.holes), "passed": self._passed}
        return {
            "steps": np.asarray(self.steps).astype("<i8", copy=False).tobytes(),
            "logs": np.asarray(self.logs).astype("<f8", copy=False).tobytes(),
            "levels": np.asarray(self._own_levels()).astype("<f8", copy=False).tobytes(),
            "num_thinned": self._num_thinned,
            **further,
            **self.marks.state(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        logs = np.frombuffer(state["logs"], "<f8").astype(np.float64)
        own = np.frombuffer(state["levels"], "<f8").astype(np.float64)
        self._num_thinned = state["num_thinned"]
        rest = logs[max(0, len(own) - MEDIAN_READINGS + 1) :]
        first, second, third = rest[:-2], rest[1:-1], rest[2:]
        levels = np.maximum(np.minimum(first, second), np.minimum(np.maximum(first, second), third))
        self.steps = array("q", np.frombuffer(state["steps"], "<i8").astype(np.int64).tobytes())
        self.logs = array("d", logs.tobytes())
        self.levels = array("d", own.tobytes() + levels.tobytes())
        self.gaps = array("f", np.frombuffer(state.get("gaps", b""), "<f4").astype(np.float32).tobytes())
        self.holes, self._passed = array("q", state.get("holes", [])), state.get("passed", False)
        self.marks.restore(state)

    def _own_levels(self) -> array[float]:
        return self.levels[: self._num_thinned + MEDIAN_READINGS - 1]
