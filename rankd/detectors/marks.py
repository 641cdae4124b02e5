"""What the errors of two levels leave of the change between them, and which errors each level has."""

from __future__ import annotations

import math
import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby
from typing import Any, NamedTuple

from rankd.detectors.precision import MIXED, Precision

HEADROOM = 1.2
SLACK = 1.5
SLACK_LEVEL = 1e-3
"""A mark stands for margins up to its own, which are made a fifth wider than need be, and down to two thirds of its own
less 0.1 %: margins waver from reading to reading, and each new mark is remembered."""

SAME = 2e-3
"""Of logarithms: nearer readings are as good as one."""

MAX_MARKS = 256
"""Of a layer and metric. What is older than the last ones becomes one mark, with the widest margins among them."""


class Bars(NamedTuple):
    """The errors of a logarithm: the truth is not more than `below` under it and not more than `above` over it; without
    the correction for rounding it would be higher by `gap`."""

    signature: str
    below: float
    above: float
    gap: float = 0.0

    @classmethod
    def of(cls, log: float, precision: Precision | None) -> Bars:
        if precision is None:
            return PLAIN
        raw = log if precision.raw is None else _log(precision.raw)
        below, above = max(0.0, log - _log(precision.low)), max(0.0, _log(precision.high) - log)
        return cls(precision.signature, below, above, raw - log)


PLAIN = Bars("", 0.0, 0.0)
"""Of a reading without error bars."""


def counted(direction: int, change: float, then: Bars, now: Bars) -> float:
    """What is left of `change`, the way that a level went in `direction` (-1: down, +1: up).

    Alike in their making: all of it; where rounding was corrected, as far as the raw values show it too, because
    rounding may be the reason for what only one of the two shows. Else: what errors cannot explain. Never more than
    `change`.
    """
    if then.signature == now.signature != MIXED:
        return min(change, change + direction * (now.gap - then.gap))
    return change - (then.below + now.above if direction < 0 else then.above + now.below)


def movement(levels: Sequence[float], bars: Sequence[Bars]) -> float:
    """How far `levels` are from one another: the ways within each stretch of one signature together, or the gap between
    stretches that errors cannot explain, if that is more. A change of signature neither adds to it nor hides any."""
    way = 0.0
    for signature, places in groupby(range(len(levels)), lambda place: bars[place].signature):
        if signature != MIXED:
            stretch = list(places)
            raw = [levels[place] + bars[place].gap for place in stretch]
            way += min(_spread([levels[place] for place in stretch]), _spread(raw))
    lowest_top = min(level + bar.above for level, bar in zip(levels, bars, strict=True))
    highest_bottom = max(level - bar.below for level, bar in zip(levels, bars, strict=True))
    return max(way, highest_bottom - lowest_top)


class Marks:
    """From which step on which bars hold for the levels of a Memory. Empty as long as all its readings are plain.

    A level is the median of three readings, and the truth's median lies between those of the three lower and of the
    three upper ends. The median of three is never outside the two that were made alike, if there are two: it
    has their signature, and a single reading of another is nothing, as any outlier. Else the level is MIXED.
    """

    def __init__(self) -> None:
        self._steps = array("q")
        self._bars: list[Bars] = []
        self._recent: list[Bars] = []
        """Of the last readings, one less than a median takes."""

    def __bool__(self) -> bool:
        return bool(self._bars)

    def append(self, step: int, logs: Sequence[float], bars: Bars) -> float:
        """`logs`: the readings that the level of `step` is the median of; `bars`: those of the last of them. Gives the
        gap of the level."""
        missing = len(logs) - 1 - len(self._recent)
        window = [PLAIN] * missing + self._recent[max(0, -missing) :] + [bars]
        self._recent = window[-2:]
        level = median(logs)
        below = level - median([log - each.below for log, each in zip(logs, window, strict=True)])
        above = median([log + each.above for log, each in zip(logs, window, strict=True)]) - level
        gap = median([log + each.gap for log, each in zip(logs, window, strict=True)]) - level
        self._mark(step, _shared(logs, window), max(0.0, below), max(0.0, above))
        return gap

    def _mark(self, step: int, signature: str, below: float, above: float) -> None:
        last = self._bars[-1] if self._bars else None  # the first reading that is not plain leaves a mark in any case
        if last and last.signature == signature and _holds(last.below, below) and _holds(last.above, above):
            return
        self._steps.append(step)
        self._bars.append(Bars(signature, below * HEADROOM, above * HEADROOM))
        if len(self._bars) > MAX_MARKS:
            first, second = self._bars[:2]
            self._bars[:2] = [Bars(MIXED, max(first.below, second.below), max(first.above, second.above))]
            del self._steps[1]

    def at(self, step: int) -> Bars:
        """Of the level of `step`, all but its gap."""
        place = bisect_right(self._steps, step) - 1
        return PLAIN if place < 0 else self._bars[place]

    def truncate(self, step: int, last: Bars, num_left: int) -> None:
        """Drops the marks of `step` and later. Of the `num_left` readings before it the last ones are taken to be as
        good as their level, whose bars are `last`."""
        start = bisect_left(self._steps, step)
        del self._steps[start:], self._bars[start:]
        self._recent = [last] * min(2, num_left) if self._bars else []

    def state(self) -> dict[str, Any]:
        """Nothing where there is nothing."""
        if not self:
            return {}
        marks = [[step, *bars[:3]] for step, bars in zip(self._steps, self._bars, strict=True)]
        return {"marks": marks, "recent": [list(bars) for bars in self._recent]}

    def restore(self, state: Mapping[str, Any]) -> None:
        marks = state.get("marks", [])
        self._steps = array("q", [step for step, *_ in marks])
        self._bars = [Bars(*bars) for _, *bars in marks]
        self._recent = [Bars(*bars) for bars in state.get("recent", [])]


def median(values: Sequence[float]) -> float:
    """Of one to three values: `statistics.median` takes as long as the rest of a reading."""
    if len(values) == 3:
        first, second, third = values
        return max(min(first, second), min(max(first, second), third))
    return sum(values) / len(values)


def _shared(logs: Sequence[float], window: Sequence[Bars]) -> str:
    """The signature of the level of these readings."""
    if all(bars.signature == window[0].signature for bars in window):
        return window[0].signature
    if len(window) == 3:
        for (log, bars), (other_log, other) in combinations(zip(logs, window, strict=True), 2):
            apart = max(abs(log - other_log), abs(log + bars.gap - other_log - other.gap))
            if bars.signature == other.signature and apart <= SAME:
                return bars.signature
    return MIXED


def _holds(mark: float, margin: float) -> bool:
    return margin <= mark <= SLACK * margin + SLACK_LEVEL


def _spread(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[-1] - ordered[0]


def _log(value: float) -> float:
    return math.log(max(value, sys.float_info.min))
