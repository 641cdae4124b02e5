"""Which readings an average is made of, and how far their errors may move it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from rankd.detectors.precision import MIXED, Precision

NEGLIGIBLE = 1e-6
"""A weight in the average that is no longer remembered."""

MAX_SIGNATURES = 16
"""Those with the smallest weights become MIXED."""


class Share(NamedTuple):
    """The readings of one signature: their weight in the average, and how far the truth may move it down and up."""

    weight: float
    below: float
    above: float

    def plus(self, other: Share | None) -> Share:
        if other is None:
            return self
        return Share(self.weight + other.weight, self.below + other.below, self.above + other.above)

    def scaled(self, factor: float) -> Share:
        return Share(self.weight * factor, self.below * factor, self.above * factor)


WHOLE = {"": Share(1.0, 0.0, 0.0)}
"""The average of readings without error bars."""

Shares = Mapping[str, Share]
"""By signature; empty stands for WHOLE."""


def with_reading(shares: Shares, weight: float, value: float, precision: Precision | None) -> dict[str, Share]:
    """The shares after one more reading of `weight`: 1 for the first."""
    signature, below, above = "", 0.0, 0.0
    if precision is not None:
        signature, below, above = precision.signature, value - precision.low, precision.high - value
    kept = {name: share.scaled(1 - weight) for name, share in (shares or WHOLE).items()}
    kept = {name: share for name, share in kept.items() if share.weight > NEGLIGIBLE}
    new = Share(weight, weight * max(0.0, below), weight * max(0.0, above))
    kept[signature] = new.plus(kept.get(signature))
    while len(kept) > MAX_SIGNATURES:
        _merge(kept)
    return kept


def _merge(shares: dict[str, Share]) -> None:
    smallest = min(shares.keys() - {MIXED}, key=lambda name: (shares[name].weight, name))
    shares[MIXED] = shares.pop(smallest).plus(shares.get(MIXED))


def explained_fall(then: Shares, now: Shares) -> float:
    """How much lower an average of shares `now` may be than one of shares `then` for errors alone. Readings of one
    signature err alike, so that of them only the difference in weight counts: nothing where all are of one."""
    then, now = then or WHOLE, now or WHOLE
    total = 0.0
    for name in sorted(then.keys() | now.keys()):
        before, after = then.get(name), now.get(name)
        common = min(before.weight, after.weight) if before and after and name != MIXED else 0.0
        total += before.below * (1 - common / before.weight) if before else 0.0
        total += after.above * (1 - common / after.weight) if after else 0.0
    return total


def packed(shares: Shares) -> dict[str, list[float]]:
    return {name: list(share) for name, share in shares.items()}


def unpacked(state: Mapping[str, Any]) -> dict[str, Share]:
    return {name: Share(*share) for name, share in state.items()}
