"""The readings of a layer's metric, as far back as a rule in log-time may look."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MEDIAN_READINGS = 3
CUT_EVERY = 8
"""Readings from one look for stale ones to the next."""

THINNED_RATIO = 1.005
"""Of the steps of readings that are kept beyond reach: a tenth of the shortest look-back of the default rule."""


class Reading(NamedTuple):
    step: int
    level: float


class Memory:
    """The readings a detector may still need, in order of step. `append` is O(1) amortised, `at` O(log n).

    It keeps those back to step/`reach`, and the last `num_kept` in any case. Older ones matter only to a run that goes
    back further than that: of them it keeps those that lie THINNED_RATIO apart, with the levels that they had.
    """

    def __init__(self, reach: float, num_kept: int) -> None:
        self._reach = reach
        self._num_kept = num_kept
        self.steps = array("q")
        self.logs = array("d")
        self.levels = array("d")
        """x(s): the median of the last three logs up to s."""
        self._num_thinned = 0

    def __len__(self) -> int:
        return len(self.steps)

    def append(self, step: int, log: float) -> None:
        steps, logs = self.steps, self.logs
        if steps and step <= steps[-1]:
            raise ValueError(f"step is {step}; expected one after {steps[-1]} (rewind first)")
        steps.append(step)
        logs.append(log)
        self.levels.append(_median(logs[-MEDIAN_READINGS:]))
        if len(steps) % CUT_EVERY == 0:
            self._cut(step)

    def _cut(self, step: int) -> None:
        """Thin what is beyond reach. The last reading not after the horizon stays, since sparse readings look it up,
        and so do the last ones. An eighth or more at a time makes the move of what is left cheap."""
        stale = min(bisect_right(self.steps, step / self._reach) - 1, len(self) - self._num_kept)
        if (stale - self._num_thinned) * 8 < len(self):
            return
        steps, logs, levels = self.steps, self.logs, self.levels
        kept = self._num_thinned
        next_step = steps[kept - 1] * THINNED_RATIO if kept else -math.inf
        for place in range(kept, stale):
            if steps[place] >= next_step:
                steps[kept], logs[kept], levels[kept] = steps[place], logs[place], levels[place]
                next_step = steps[kept] * THINNED_RATIO
                kept += 1
        for column in (steps, logs, levels):
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
        for column in (self.steps, self.logs, self.levels):
            del column[start:]
        self._num_thinned = min(self._num_thinned, start)

    def state(self) -> dict[str, Any]:
        """`steps` (int64) and `logs` (float64) as little-endian bytes. Of the levels only those that rest on readings
        which are no longer here: the others follow from the logs."""
        return {
            "steps": np.asarray(self.steps).astype("<i8", copy=False).tobytes(),
            "logs": np.asarray(self.logs).astype("<f8", copy=False).tobytes(),
            "levels": np.asarray(self._own_levels()).astype("<f8", copy=False).tobytes(),
            "num_thinned": self._num_thinned,
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

    def _own_levels(self) -> array[float]:
        return self.levels[: self._num_thinned + MEDIAN_READINGS - 1]


def _median(values: array[float]) -> float:
    """Of one to three values: `statistics.median` takes as long as the rest of a reading."""
    if len(values) == MEDIAN_READINGS:
        first, second, third = values
        return max(min(first, second), min(max(first, second), third))
    return sum(values) / len(values)
