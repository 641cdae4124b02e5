"""A daemon's measuring in simulated time: pushes at intervals, a queue where newest wins and runs take turns, slots."""

from __future__ import annotations

import heapq
import itertools
import random
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from rankd.plan import MeasureConfig, Planner
from rankd.plan.costs import Costs, Size
from rankd.plan.planner import Key
from rankd.records import Snapshot, Tier

REVIEW = "\0review"
EMPTY = np.zeros(0, np.uint8)


def snapshot(layer: str, run: str = "r", step: int = 1, **flags: Any) -> Snapshot:
    return Snapshot(run, layer, step, (1, 1), "float32", "float32", EMPTY, **flags)


@dataclass
class World:
    """`slower`: by what factor measuring is slower than a plan guesses at first. `falls`: whether a layer's estimates
    fall to exact."""

    num_slots: int = 2
    slower: float = 1.0
    device: str = "cpu"
    settings: dict[str, Any] = field(default_factory=dict)
    falls: Callable[[Key], bool] = lambda key: False
    jitter: float = 0.2

    def __post_init__(self) -> None:
        self.now = 0.0
        self.planner = Planner(
            MeasureConfig(**self.settings),
            lambda: self.num_slots,
            lambda: self.device,
            lambda: self.lag,
            max_layers=1 << 18,
        )
        self.random = random.Random(7)
        self.truth = Costs()
        self.sizes: dict[Key, Size] = {}
        self.intervals: dict[str, float] = {}
        self.steps: dict[str, int] = {}
        self.events: list[tuple[float, int, Any]] = []
        self.num_events = 0
        self.waiting: dict[str, dict[Key, float]] = {}
        self.measuring: dict[Key, float] = {}
        self.busy_seconds = 0.0
        self.got: dict[Key, list[Tier]] = defaultdict(list)

    @property
    def num_changes(self) -> int:
        """How often a layer got another tier than the last time, norms between left out."""
        full = [[tier for tier in got if tier != "norms"] for got in self.got.values()]
        return sum(a != b for tiers in full for a, b in itertools.pairwise(tiers))

    @property
    def lag(self) -> float:
        waiting = [since for line in self.waiting.values() for since in line.values()]
        return self.now - min([*waiting, *self.measuring.values()], default=self.now)

    def add_run(self, run: str, sizes: list[Size], interval: float) -> list[Key]:
        """All layers of a run are pushed together, each `interval` seconds or so, at steps from 0 on."""
        keys = [(run, f"{i}", "weight") for i in range(len(sizes))]
        self.sizes |= dict(zip(keys, sizes, strict=True))
        self.intervals[run] = interval
        self.steps[run] = 0
        self._at(self.now, run)
        return keys

    def seconds(self, tier: Tier, size: Size) -> float:
        return self.slower * self.truth.predict(self.device, tier, size) * self.random.uniform(0.8, 1.25)

    def play(self, seconds: float) -> float:
        """The share of the slots' time that was spent meanwhile."""
        until, before = self.now + seconds, self.busy_seconds
        if self.now == 0.0:
            self._at(self.now, REVIEW)
        while self.events and self.events[0][0] <= until:
            self.now, _, event = heapq.heappop(self.events)
            if event is REVIEW:
                self.planner.review(self.now)
                self._at(self.now + 1.0, REVIEW)
            elif isinstance(event, str):
                self._push(event)
            else:
                key, asked, got, took = event
                del self.measuring[key]
                self.got[key].append(got)
                self.planner.learn(key, asked, got, took)
            self._start()
        self.now = until
        return (self.busy_seconds - before) / seconds / self.num_slots

    def end_run(self, run: str) -> None:
        del self.intervals[run]

    def tiers(self, keys: list[Key], newest: int = 16) -> Counter[Tier]:
        return Counter(tier for key in keys for tier in self.got[key][-newest:])

    def _at(self, time: float, event: Any) -> None:
        self.num_events += 1
        heapq.heappush(self.events, (time, self.num_events, event))

    def _push(self, run: str) -> None:
        if run not in self.intervals:
            return
        self.steps[run] += 1
        for key in self.sizes:
            if key[0] == run:
                self.planner.arrived(snapshot(key[1], run, self.steps[run]), self.now)
                self.waiting.setdefault(run, {}).setdefault(key, self.now)
        spread = self.random.uniform(1 - self.jitter, 1 + self.jitter)
        self._at(self.now + spread * self.intervals[run], run)

    def _start(self) -> None:
        while len(self.measuring) < self.num_slots:
            free = (key for line in self.waiting.values() for key in line if key not in self.measuring)
            if (key := next(free, None)) is None:
                return
            line = self.waiting.pop(key[0])
            self.measuring[key] = line.pop(key)
            if line:
                self.waiting[key[0]] = line  # its next turn comes after the others'
            size = self.sizes[key]
            asked = self.planner.choose(key, size.rows, size.cols, self.now, size.num_matrices)
            fell = asked == "estimate" and self.falls(key)
            took = self.seconds(asked, size) + (self.seconds("exact", size) if fell else 0.0)
            self.busy_seconds += took
            self._at(self.now + took, (key, asked, "exact" if fell else asked, took))
