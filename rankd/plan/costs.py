"""What measuring costs: a first guess for each device and tier, corrected by what was seen."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from rankd.records import Tier

MAX_SHAPES = 4096
"""Remembered. A model has some dozens; beyond these the correction of the tier serves."""

MIN_WEIGHT = {"shape": 0.1, "tier": 0.02}
"""Of the newest measurement in the mean of its shape and of its tier, once there are many. Single ones are slow for
reasons of their own, the first ones because they warm up libraries and devices."""

OVERHEAD_SECONDS = 1e-4
"""Of each measurement, on whatever device: taking over the bytes, and Python."""


class Size(NamedTuple):
    """A weight as it is measured: so many matrices (the experts of a stack) of rows × cols."""

    rows: int
    cols: int
    num_matrices: int = 1


def _cpu_norms(short: float, long: float) -> float:
    """6 steps there and back, with 4 vectors each: as fast as the matrix is read."""
    return 2 * 6 * 4 * 2 * short * long / 1.4e10


def _cpu_estimate(short: float, long: float) -> float:
    """Two passes there and back for the range, with 32 vectors; then 16 to 64 steps with 68, of which 32 are usual: a
    product of matrices, hence faster."""
    return 2 * (2 * 32 + 32 * 68) * 2 * short * long / 6.7e10


def _cpu_exact(short: float, long: float) -> float:
    """Half of a Gram matrix, the other half being its mirror image, and its eigenvalues."""
    return (2 * 0.6 * short**2 * long + 3 * 4 / 3 * short**3) / 2.5e10


def _cuda_norms(short: float, long: float) -> float:
    return 0.0008 * short * long / 4096**2


def _cuda_estimate(short: float, long: float) -> float:
    return 0.0002 + 0.004 * short * long / 4096**2


def _cuda_exact(short: float, long: float) -> float:
    return 0.12 * math.pow(short / 4096, 2.3) + 0.007 * long / 4096


Guess = Callable[[float, float], float]
GUESSES: dict[str, dict[Tier, Guess]] = {
    "cpu": {"norms": _cpu_norms, "estimate": _cpu_estimate, "exact": _cpu_exact},  # seconds of one thread
    "cuda": {"norms": _cuda_norms, "estimate": _cuda_estimate, "exact": _cuda_exact},  # as an H100 has it
}
"""Kind of device → tier → seconds for a matrix, by its shorter and its longer side."""


class Mean(NamedTuple):
    """Of the logarithm of seen/guessed, over `num` measurements, newer ones counting more."""

    log: float = 0.0
    num: int = 0

    def and_of(self, newest: float, min_weight: float) -> Mean:
        """What it was before counts for one measurement more than there were."""
        return Mean(self.log + max(min_weight, 1 / (self.num + 2)) * (newest - self.log), self.num + 1)


class Costs:
    """Seconds that a tier takes for a matrix. Bounded memory; a device of another kind counts as a CPU. Any thread may
    ask while one learns."""

    def __init__(self) -> None:
        self._of_shape: OrderedDict[tuple[str, Tier, Size], Mean] = OrderedDict()
        self._of_tier: dict[tuple[str, Tier], Mean] = {}

    def predict(self, device: str, tier: Tier, size: Size) -> float:
        """Seconds."""
        mean = self._of_shape.get((device, tier, size)) or self._of_other_shapes(device, tier)
        return _guess(device, tier, size) * math.exp(mean.log)

    def learn(self, device: str, tier: Tier, size: Size, seconds: float) -> None:
        """One measurement of that size took `seconds`."""
        seen = math.log(max(seconds, 1e-7) / _guess(device, tier, size))
        mean = self._of_shape.get((device, tier, size)) or self._of_other_shapes(device, tier)
        self._of_shape[device, tier, size] = mean.and_of(seen, MIN_WEIGHT["shape"])
        self._of_shape.move_to_end((device, tier, size))
        if len(self._of_shape) > MAX_SHAPES:
            self._of_shape.popitem(last=False)
        self._of_tier[device, tier] = self._of_tier.get((device, tier), Mean()).and_of(seen, MIN_WEIGHT["tier"])

    def _of_other_shapes(self, device: str, tier: Tier) -> Mean:
        """Or, where there are none, of the other tiers: this host is as slow in all of them."""
        if (mean := self._of_tier.get((device, tier))) is None:
            others = [mean.log for (name, _), mean in list(self._of_tier.items()) if name == device]
            return Mean(sum(others) / len(others)) if others else Mean()
        return Mean(mean.log)


def _guess(device: str, tier: Tier, size: Size) -> float:
    short, long = sorted((size.rows, size.cols))
    guess = GUESSES.get(device, GUESSES["cpu"])[tier]
    return OVERHEAD_SECONDS + size.num_matrices * guess(short, long)
