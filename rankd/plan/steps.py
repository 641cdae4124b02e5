"""How the plan changes: a few layers at a time, from what they get now, never all anew."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rankd.plan.layer import NUM_BEHIND, Layer
from rankd.records import Tier

WORTH = 1 / 3
"""An estimate is worth it where it costs less than this share of exact."""
STILL_WORTH = 1 / 2
"""The same for a layer that gets estimates, so that it does not waver."""

MAX_BUSY, FREE_BUSY = 0.8, 0.5
"""Share of one slot that one layer may keep busy, and to which it may rise: its measurements do not overlap, and where
they take longer than its pushes are apart it always lags behind, however idle the other slots are."""

NEGLIGIBLE = 0.25
"""A layer with less than this part of an equal share of the time keeps its tier: to take it would bring nothing."""


@dataclass(slots=True)
class Load:
    """A layer with its pushes a second, and what it would cost in each tier, in seconds of a slot."""

    layer: Layer
    rate: float
    norms: float
    estimate: float
    """With the share of them that fall to exact."""
    exact: float
    most_every: int

    @property
    def is_worth_estimating(self) -> bool:
        worth = STILL_WORTH if self.layer.tier == "estimate" else WORTH
        return not self.layer.num_direct and self.estimate < worth * self.exact

    @property
    def is_behind(self) -> bool:
        """Whether it waits for others: not where its own measurements take longer than its pushes are apart."""
        layer = self.layer
        return layer.num_unserved >= NUM_BEHIND and self.rate * self.full() <= MAX_BUSY * layer.every

    def full(self, tier: Tier | None = None) -> float:
        """Seconds of a measurement that is not left at norms."""
        tier = tier or self.layer.tier
        return self.exact if tier == "exact" else self.estimate if tier == "estimate" else self.norms

    def demand(self, tier: Tier | None = None, every: int | None = None) -> float:
        """Seconds of a slot in each second, as it is or as it would be."""
        return self.rate * self.once(tier, every)

    def once(self, tier: Tier | None = None, every: int | None = None) -> float:
        """Seconds of one measurement, in the mean."""
        return self.norms + (self.full(tier) - self.norms) / (every or self.layer.every)

    def wish(self) -> float:
        """What it would take if there were time for all."""
        busy = self.rate * self.exact
        if busy > (MAX_BUSY if self.layer.tier == "exact" else FREE_BUSY) and self.is_worth_estimating:
            busy = self.rate * self.estimate
        return min(busy, MAX_BUSY)

    def is_free(self, tier: Tier, every: int) -> bool:
        """Whether the layer by itself may rise to that."""
        return self.rate * self.full(tier) <= FREE_BUSY * every


def settle(loads: Iterable[Load], now: float) -> None:
    """What each layer may not be, whatever time there is: estimated where that is wasted; exact only now and then where
    estimates would do; measured for longer than its pushes are apart; thinned until the default rule is blind."""
    for load in loads:
        layer = load.layer
        if layer.every > load.most_every:
            layer.every = load.most_every
        if layer.tier == "estimate":
            if not load.is_worth_estimating:
                layer.change(now, "exact", layer.every, down=False)
        elif (
            layer.tier == "exact"
            and (layer.every > 1 or load.rate * load.exact > MAX_BUSY)
            and load.is_worth_estimating
        ):
            layer.change(now, "estimate", layer.every, down=True)
        while layer.every < load.most_every and load.rate * load.full() > MAX_BUSY * layer.every:
            layer.change(now, layer.tier, min(2 * layer.every, load.most_every), down=True)


def step_down(loads: Sequence[Load], budget: float, now: float) -> None:
    """Estimates instead of exact, the dearest first; then rarer ones, where most time goes, until `budget` (seconds of
    a slot in each second) is kept or nothing is left to give."""
    excess = sum(load.demand() for load in loads) - budget
    least = NEGLIGIBLE * budget / max(1, len(loads))
    for load in sorted(loads, key=lambda load: load.exact, reverse=True):
        if excess <= 0:
            return
        if load.layer.tier == "exact" and load.is_worth_estimating and load.demand() > least:
            excess -= load.demand() - load.demand("estimate")
            load.layer.change(now, "estimate", load.layer.every, down=True)
    heap = [(-load.demand(), i) for i, load in enumerate(loads) if load.layer.every < load.most_every]
    heapq.heapify(heap)
    while excess > 0 and heap:
        demand, i = heapq.heappop(heap)
        layer, most = loads[i].layer, loads[i].most_every
        layer.change(now, layer.tier, min(2 * layer.every, most), down=True)
        excess += demand + loads[i].demand()
        if layer.every < most:
            heapq.heappush(heap, (-loads[i].demand(), i))


def step_up(loads: Sequence[Load], budget: float, now: float) -> None:
    """The reverse, the cheapest first, as far as `budget` goes and for layers whose last change is long enough ago:
    first at every push, then exact."""
    room = budget - sum(load.demand() for load in loads)
    thinned = sorted((load for load in loads if load.layer.every > 1), key=Load.demand)
    for load in thinned:
        layer, every = load.layer, load.layer.every
        while every > 1 and load.is_free(layer.tier, every // 2):
            extra = load.demand(every=every // 2) - load.demand(every=every)
            if extra > room or not layer.may_rise(now):
                break
            room, every = room - extra, every // 2
        if every < layer.every:
            layer.change(now, layer.tier, every, down=False)
    if any(load.layer.every > 1 and load.is_free(load.layer.tier, load.layer.every // 2) for load in thinned):
        return  # they come first, and wait
    for load in sorted((load for load in loads if load.layer.tier == "estimate"), key=lambda load: load.exact):
        extra = load.demand("exact") - load.demand()
        if load.layer.every == 1 and extra <= room and load.is_free("exact", 1) and load.layer.may_rise(now):
            room -= extra
            load.layer.change(now, "exact", 1, down=False)
