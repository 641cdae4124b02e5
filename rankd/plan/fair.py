"""Who may have how much of the time: equal shares of the namespaces, and in each of its runs. What one does not want,
the others share, as the mailbox serves them in turn. So a loud run thins its own layers, and nobody else's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from rankd.namespaces import namespace_of
from rankd.plan.steps import Load

LAGGING = 0.1
"""Share of a run's layers that may be behind, by chance, before the plan takes it for its own fault."""
CUT, MIN_TRUST = 0.7, 1 / 16
"""To what part of what it is believed to take a run goes down where measuring lags behind all the same; at last, to
what part of an equal share."""
RECOVERY = 1.03
"""At each review after that: a second try is minutes away."""
PAUSE_SECONDS = 20.0
"""Between two cuts, or as long as the oldest push has waited: what waits already has to pass first."""


@dataclass(frozen=True, slots=True)
class RunLoad:
    """The layers of a run: what they take now and what they would take if there were time for all, in seconds of a slot
    in each second."""

    loads: Sequence[Load]
    demand: float
    wish: float
    is_behind: bool


class Demand(NamedTuple):
    """What a run asks for, in seconds of a slot."""

    per_second: float
    """As the plan has its layers now."""
    wish: float
    """Likewise, if there were time for all."""
    once: float
    """To measure each of its layers once."""


def demand_of(load: RunLoad) -> Demand:
    return Demand(load.demand, load.wish, sum(layer.once() for layer in load.loads))


def by_run(loads: Iterable[Load]) -> dict[str, RunLoad]:
    groups: dict[str, list[Load]] = {}
    for load in loads:
        groups.setdefault(load.layer.run, []).append(load)
    return {run: _together(group) for run, group in groups.items()}


def _together(loads: list[Load]) -> RunLoad:
    num_behind = sum(load.is_behind for load in loads)
    demand, wish = sum(load.demand() for load in loads), sum(load.wish() for load in loads)
    return RunLoad(loads, demand, wish, num_behind > LAGGING * len(loads))


def level(wishes: Iterable[float], budget: float) -> float:
    """Up to what wishes are granted, the same for all, so that they keep to `budget` together; infinite where each is
    granted."""
    ordered = sorted(wishes)
    for num_granted, wish in enumerate(ordered):
        if wish * (num := len(ordered) - num_granted) > budget:
            return budget / num
        budget -= wish
    return math.inf


def allot(wishes: Mapping[str, float], budget: float) -> dict[str, float]:
    """What each run may have; infinite where that is all it wishes."""
    by_namespace: dict[str, dict[str, float]] = {}
    for run, wish in wishes.items():
        by_namespace.setdefault(namespace_of(run), {})[run] = wish
    most = level((sum(runs.values()) for runs in by_namespace.values()), budget)
    found: dict[str, float] = {}
    for runs in by_namespace.values():
        highest = level(runs.values(), most)
        found |= {run: math.inf if wish <= highest else highest for run, wish in runs.items()}
    return found


def equal_shares(runs: Iterable[str], budget: float) -> dict[str, float]:
    """Of the namespaces, and in each of its runs."""
    namespaces = {run: namespace_of(run) for run in runs}
    num_runs = Counter(namespaces.values())
    return {run: budget / len(num_runs) / num_runs[namespace] for run, namespace in namespaces.items()}


class Brakes:
    """Limits of runs that measuring lagged behind although the plan should do. Others keep what they have."""

    def __init__(self) -> None:
        self.limits: dict[str, float] = {}
        """Run → seconds of a slot in each second; none for those that are trusted."""
        self._next_cut = 0.0

    def follow(self, runs: Mapping[str, RunLoad], wanted: float, lag: float, now: float) -> None:
        """`wanted`: what all may take together. `lag`: for how many seconds the oldest push has waited."""
        equal = equal_shares(runs, wanted)
        guilty = _guilty(runs, equal)
        cuts = bool(guilty) and now >= self._next_cut
        if cuts:
            self._next_cut = now + max(lag, PAUSE_SECONDS)
        limits: dict[str, float] = {}
        for run, load in runs.items():
            limit = self.limits.get(run, math.inf)
            if run not in guilty:
                limit *= RECOVERY
            elif cuts:
                limit = max(MIN_TRUST * equal[run], CUT * min(limit, load.demand))
            if limit < wanted:
                limits[run] = limit
        self.limits = limits


def _guilty(runs: Mapping[str, RunLoad], equal: Mapping[str, float]) -> set[str]:
    """Those that lag; but where one lags that takes no more than its share, those that take more."""
    behind = {run for run, load in runs.items() if load.is_behind}
    loud = {run for run, load in runs.items() if load.demand > equal[run]}
    return loud if loud and behind - loud else behind
