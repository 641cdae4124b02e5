"""What the plan knows of one layer, and what it has decided for it."""

from __future__ import annotations

from dataclasses import dataclass

from rankd.plan.costs import Size
from rankd.records import Tier

INTERVAL_WEIGHT = 0.2
"""Of the newest interval between two pushes."""

MAX_SLOWING = 4.0
"""By how much one interval may exceed the mean: a run that paused for an hour has not become slow."""

LATE_INTERVALS = 2.0
"""A push that is later than so many intervals says that the rate has fallen; sooner it is chance."""

IDLE_INTERVALS, IDLE_SECONDS = 10.0, 600.0
"""A layer that was not pushed for so long (both) has left the plan until it comes again."""

SPARSEST = 0.15 / 4
"""Of a layer's step, and of its pushes so far: how far apart its readings may be. The default rule wants three in a row
that are new where those at step/1.15 are old, and a median makes them four: they fit into 15 % of the steps with less
than this between them. By the pushes as well, since a layer that is first seen at step 10,000 has no earlier readings.
"""

NUM_BEHIND = 3
"""Pushes since measuring last began: the first of them has waited for two intervals."""

PATIENCE = 20
"""Measurements between two changes of a layer, unless time presses: each change costs detectors their sharpness.
Doubled where it goes down again after a rise, to at most MAX_PATIENCE, so that a layer on the edge comes to rest; as at
first again where nothing had changed for REST times as long."""
MAX_PATIENCE = 640
REST = 4
PATIENCE_SECONDS = 30.0
"""Counts as one measurement of a layer that is pushed more rarely."""

FELL_WEIGHT, MAX_FELL = 0.3, 0.6
"""How often its estimates fell to exact, newest first; three in a row are too many, and exact is asked for directly."""
NUM_DIRECT = 50
"""Measurements after which an estimate is tried again."""


@dataclass(slots=True)
class Layer:
    """`every`: at which of its pushes it gets `tier`; the others get norms. `phase` spreads those over the pushes of a
    model. Times in seconds of the caller's clock. A review, perhaps on another thread, sets `tier`, `every` and what
    goes with a change, whole values each; what it overlooked meanwhile the next one sets right."""

    run: str
    phase: int
    arrived: float
    step: int = 0
    taken_step: int | None = None
    stride: float = 0.0
    """Steps between two measurements, whichever tier they had; at once more, and slowly less."""
    interval: float = 0.0
    """Between two pushes, averaged; 0 until there were two."""
    size: Size | None = None
    tier: Tier = "exact"
    every: int = 1
    num_unserved: int = 0
    num_chosen: int = 0
    fell: float = 0.0
    num_direct: int = 0
    """Measurements for which its estimates are taken for wasted."""
    patience: int = PATIENCE
    rose: bool = True
    """At its last change, or it has only begun."""
    changed: tuple[int, float] = (-PATIENCE, 0.0)
    """`num_chosen` and the time at the last change."""

    def arrive(self, now: float, step: int) -> None:
        """It was pushed."""
        self.step = step
        if self.num_unserved or self.num_chosen:
            passed = max(now - self.arrived, 1e-3)
            if self.interval:
                passed = min(passed, MAX_SLOWING * self.interval)
                self.interval += INTERVAL_WEIGHT * (passed - self.interval)
            else:
                self.interval = passed
        self.arrived = now
        self.num_unserved += 1

    def take(self) -> Tier:
        """Its measuring begins."""
        self.num_unserved = 0
        self.num_chosen += 1
        if self.taken_step is not None and (passed := self.step - self.taken_step) > 0:
            self.stride = max(passed, self.stride + INTERVAL_WEIGHT * (passed - self.stride))
        self.taken_step = self.step
        if (self.phase + self.num_chosen) % self.every:
            return "norms"
        if self.num_direct:
            self.num_direct -= 1
        return self.tier

    def learn_fall(self, fell: bool) -> None:
        """An estimate was asked for; whether it fell to exact."""
        self.fell += FELL_WEIGHT * (fell - self.fell)
        if self.fell > MAX_FELL and not self.num_direct:
            self.tier, self.num_direct = "exact", NUM_DIRECT
            self.fell = MAX_FELL - FELL_WEIGHT / 2  # one more fall is enough, next time

    def most_every(self, max_every: int) -> int:
        """`every` at most, so that the default rule still sees a collapse: 1, 2, 4, … or `max_every`."""
        if not self.stride:
            return 1
        most = int(SPARSEST * min(self.step / self.stride, self.num_chosen))
        return 1 if most < 2 else min(max_every, 1 << (most.bit_length() - 1))

    def rate(self, now: float) -> float:
        """Pushes a second, less the longer none has come; 0 as long as it is not known."""
        if not self.interval:
            return 0.0
        passed = now - self.arrived
        return 1 / (passed if passed > LATE_INTERVALS * self.interval else self.interval)

    def is_idle(self, now: float) -> bool:
        """Whether it has left the plan."""
        return now - self.arrived > max(IDLE_SECONDS, IDLE_INTERVALS * self.interval)

    def may_rise(self, now: float) -> bool:
        """Whether its last change is long enough ago."""
        return self._unchanged_for(now) >= self.patience

    def change(self, now: float, tier: Tier, every: int, down: bool) -> None:
        if down and self.rose:
            rested = self._unchanged_for(now) >= REST * self.patience
            self.patience = PATIENCE if rested else min(2 * self.patience, MAX_PATIENCE)
        self.tier, self.every, self.changed, self.rose = tier, every, (self.num_chosen, now), not down

    def _unchanged_for(self, now: float) -> float:
        """In measurements."""
        num_chosen, time = self.changed
        return max(self.num_chosen - num_chosen, (now - time) / PATIENCE_SECONDS)
