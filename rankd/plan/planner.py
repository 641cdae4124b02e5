"""The plan: asked at each measurement, told what it took, reviewed every few seconds."""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankd.plan.config import MeasureConfig
from rankd.plan.costs import Costs, Size
from rankd.plan.fair import Brakes, Demand, allot, by_run, demand_of
from rankd.plan.layer import NUM_BEHIND, Layer
from rankd.plan.steps import WORTH, Load, settle, step_down, step_up
from rankd.records import Snapshot, Tier

log = logging.getLogger("rankd.plan")

Key = tuple[str, str, str]
"""(run, layer, role)"""

CHEAP_SECONDS = 0.25
"""Exact is asked for at once where it takes less; what takes longer begins with estimates, until its rate is known."""

REVIEW_SECONDS = 5.0
LAYERS_PER_SECOND = 1000
"""Reviews are further apart where there are more layers: they take 5 to 9 µs for each, below 1 % of the time, and
are on a thread of their own."""

OVER, FILL = 1.1, 0.9
"""Parts of the wanted share: beyond the first the plan steps down, and either way it goes to the second. Between them
it stays as it is, because rates and costs are never quite the same."""

TELL_SECONDS = 60.0
"""Between two lines in the log."""

SHARE_SECONDS = 300.0
"""Over which the measured share is averaged: pushes come in bursts."""


def tier_by_cost(costs: Costs, device: str, size: Size) -> Tier:
    """Without knowing how often it is wanted: exact where that takes little, or an estimate not much less. `device`:
    "cpu" or "cuda"."""
    exact = costs.predict(device, "exact", size)
    is_cheap = exact < CHEAP_SECONDS or costs.predict(device, "estimate", size) > WORTH * exact
    return "exact" if is_cheap else "estimate"


class Planner:
    """Chooses the tier of each measurement, so that all together keep to `config.max_share` of the slots' time.

    `num_slots` says how many devices or threads there are, fewer while one is lost; `device` on which the next one runs
    ("cpu", "cuda:0"), `lag` for how many seconds the oldest push has waited: all are asked now and then. Remembers
    `max_layers` layers, those pushed last.

    `revise` may run on a thread beside everything else: it goes by copies, and sets attributes of layers.
    """

    def __init__(
        self,
        config: MeasureConfig,
        num_slots: Callable[[], int],
        device: Callable[[], str],
        lag: Callable[[], float],
        max_layers: int,
    ) -> None:
        self.config = config
        self._num_slots = num_slots
        self.max_layers = max_layers
        self.costs = Costs()
        self._device = device
        self._lag = lag
        self._layers: OrderedDict[Key, Layer] = OrderedDict()
        self._brakes = Brakes()
        self._next_review = self._next_telling = 0.0
        self._busy_seconds = 0.0
        """Since the beginning; `_busy_before` of them up to `_busy_since`."""
        self._busy_before = self._busy_since = self._begun = 0.0
        self._seen = ("cpu", 0.0)
        """Device and lag when the review fell due."""
        self._demand, self._measured_share, self._num_lagging = 0.0, 0.0, 0
        self.demands: Mapping[str, Demand] = {}
        """By run, as the last review saw it; no run that is idle."""
        self._plan: Counter[Tier] = Counter()
        self._max_every, self._num_thinned = 1, 0
        self._told: tuple[object, ...] = ()

    @property
    def num_slots(self) -> int:
        return self._num_slots()

    def arrived(self, snapshot: Snapshot, now: float) -> None:
        """A snapshot came; whether it is measured is seen later. Notices cost nothing."""
        if not snapshot.noticed:
            self._layer(snapshot.key, now).arrive(now, snapshot.step)

    def choose(self, key: Key, rows: int, cols: int, now: float, num_matrices: int = 1) -> Tier:
        """The tier for a snapshot about to be measured: num_matrices (the experts of a stack) of rows × cols."""
        layer = self._layer(key, now)
        size = Size(rows, cols, num_matrices)
        if layer.size != size:
            layer.size, layer.tier, layer.every = size, self._first_tier(size), 1
        return layer.take()

    def learn(self, key: Key, asked: Tier, got: Tier, seconds: float) -> None:
        """A measurement is over: what was asked for, what it came to, and for how long it kept a slot."""
        self._busy_seconds += seconds
        layer = self._layers.get(key)
        if layer is None or layer.size is None:
            return
        if asked == got:
            self.costs.learn(_kind(self._device()), got, layer.size, seconds)
        if asked == "estimate" and self.config.tier == "auto":
            layer.learn_fall(got == "exact")

    def forget(self, run: str) -> None:
        for key in [key for key in self._layers if key[0] == run]:
            del self._layers[key]

    def review(self, now: float) -> None:
        """Look at the whole, every few seconds: call it at least so often."""
        if self.due(now):
            self.revise(now)

    def due(self, now: float) -> bool:
        """Whether it is time for a review; asks on the caller's thread what `revise` has to know."""
        if now < self._next_review:
            return False
        self._seen = self._device(), self._lag()
        return True

    def revise(self, now: float) -> None:
        """A review that is due: one at a time, on whichever thread."""
        loads = self._loads(now)
        self._next_review = now + max(REVIEW_SECONDS, len(self._layers) / LAYERS_PER_SECOND)
        self._average_share(now)
        self._num_lagging = sum(load.layer.num_unserved >= NUM_BEHIND for load in loads)
        if self.config.tier == "auto":
            self._adapt(loads, now)
        runs = by_run(loads)
        self.demands = {run: demand_of(load) for run, load in runs.items()}
        self._demand = sum(load.demand for load in runs.values())
        self._plan = Counter(load.layer.tier for load in loads)
        self._max_every = max((load.layer.every for load in loads), default=1)
        self._num_thinned = sum(load.layer.every > 1 for load in loads)
        self._tell(now)

    def describe(self) -> dict[str, Any]:
        """The plan as the last review left it, for probes and people. Shares are of the slots' wall time."""
        return self._described(self._device(), self._lag())

    def _described(self, device: str, lag: float) -> dict[str, Any]:
        return {
            "tier": self.config.tier,
            "device": device,
            "layers": {tier: n for tier, n in self._plan.items() if n},
            "num_thinned": self._num_thinned,
            "max_every": self._max_every,
            "predicted_share": round(self._demand / self.num_slots, 4),
            "measured_share": round(self._measured_share, 4),
            "max_share": self.config.max_share,
            "num_lagging": self._num_lagging,
            "lag_seconds": round(lag, 3),
        }

    def _layer(self, key: Key, now: float) -> Layer:
        layer = self._layers.get(key)
        if layer is None:
            layer = self._layers[key] = Layer(key[0], len(self._layers), now)
            if len(self._layers) > self.max_layers:
                self._layers.popitem(last=False)
        self._layers.move_to_end(key)
        return layer

    def _first_tier(self, size: Size) -> Tier:
        if self.config.tier != "auto":
            return self.config.tier
        return tier_by_cost(self.costs, _kind(self._device()), size)

    def _loads(self, now: float) -> list[Load]:
        device, predict = _kind(self._seen[0]), self.costs.predict
        max_every = self.config.max_every
        costs: dict[Size, tuple[float, float, float]] = {}
        loads = []
        for layer in list(self._layers.values()):
            if (size := layer.size) is None or layer.is_idle(now):
                continue
            if (cost := costs.get(size)) is None:
                norms, estimate = predict(device, "norms", size), predict(device, "estimate", size)
                cost = costs[size] = (norms, estimate, predict(device, "exact", size))
            norms, estimate, exact = cost
            fell = layer.fell * exact
            loads.append(Load(layer, layer.rate(now), norms, estimate + fell, exact, layer.most_every(max_every)))
        return loads

    def _average_share(self, now: float) -> None:
        self._begun = self._begun or now
        passed, busy = now - self._busy_since, self._busy_seconds
        if now > self._begun and passed > 0:
            share = (busy - self._busy_before) / passed / self.num_slots
            weight = max(-math.expm1(-passed / SHARE_SECONDS), passed / (now - self._begun))  # the first: of all so far
            self._measured_share += weight * (share - self._measured_share)
        self._busy_before, self._busy_since = busy, now

    def _adapt(self, loads: Sequence[Load], now: float) -> None:
        settle(loads, now)
        wanted = self.config.max_share * self.num_slots
        runs = by_run(loads)
        self._brakes.follow(runs, wanted, self._seen[1], now)
        allotted = allot({run: load.wish for run, load in runs.items()}, FILL * wanted)
        is_over = sum(load.demand for load in runs.values()) > OVER * wanted
        for run, load in runs.items():
            limit = self._brakes.limits.get(run, math.inf)
            budget = min(allotted[run], FILL * limit)
            if load.demand > budget and (is_over or load.demand > OVER * limit):
                step_down(load.loads, budget, now)
            elif load.demand < budget:
                step_up(load.loads, budget, now)

    def _tell(self, now: float) -> None:
        """One line where the plan has changed."""
        plan = (*sorted(self._plan.items()), self._num_thinned, self._max_every)
        if plan == self._told or not self._plan or now < self._next_telling:
            return
        self._told, self._next_telling = plan, now + TELL_SECONDS
        said = self._described(*self._seen)
        layers = " ".join(f"num_{tier}={n}" for tier, n in said.pop("layers").items())
        log.info("plan %s %s", layers, " ".join(f"{name}={value}" for name, value in said.items()))


def _kind(device: str) -> str:
    """They cost alike, whichever of them it is."""
    return device.partition(":")[0]
