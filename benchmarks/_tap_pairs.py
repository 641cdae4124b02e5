"""A way of watching beside plain training: blocks of steps in alternation, so that a clock that drifts and a card that
warms up are in both."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from _tap_training import Training
from _tap_ways import Way

RESAMPLES = 2000
SETTLING_TIMES = 5
"""Of a block without a plain one, at its start, that are left out: the daemon was woken just then."""


@dataclass(frozen=True, slots=True)
class Timed:
    """A block of steps: seconds a step by the wall clock and by the device's, and what the host waited each time."""

    wall_seconds: float
    device_seconds: float
    blocked_seconds: list[float]
    peak_bytes: int


def run_block(training: Training, num_steps: int, way: Way | None = None) -> Timed:
    """`num_steps` steps, the device idle before and after; with a way, it watches at the first and then as often as it
    does."""
    is_cuda = training.device.type == "cuda"
    if way is not None:
        way.begin()
        way.elsewhere_seconds = 0.0
    training.synchronize()
    if is_cuda:
        torch.cuda.reset_peak_memory_stats(training.device)
    began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2)) if is_cuda else (None, None)
    blocked = []
    started = time.perf_counter()
    if began is not None:
        began.record()
    for index in range(num_steps):
        if way is None:
            training.step()
            continue
        training.step(way.before_update)
        if index % way.every == 0:
            at = time.perf_counter()
            way.watch(training.num_steps)
            blocked.append(time.perf_counter() - at)
    if ended is not None:
        ended.record()
    training.synchronize()
    wall_seconds = (time.perf_counter() - started) / num_steps
    device_seconds = began.elapsed_time(ended) / 1000 / num_steps if began is not None else wall_seconds
    if way is not None:
        way.end()
        blocked = [seconds + way.elsewhere_seconds / len(blocked) for seconds in blocked]
    return Timed(wall_seconds, device_seconds, blocked, torch.cuda.max_memory_allocated() if is_cuda else 0)


@dataclass(slots=True)
class Pairs:
    """Blocks of one way, and as many plain ones."""

    way: Way
    steps_per_block: int
    watched: list[Timed] = field(default_factory=list)
    plain: list[Timed] = field(default_factory=list)
    alone: list[Timed] = field(default_factory=list)
    """Blocks without a plain one, for the rare calls that block for long: a daemon runs there all the time, as it does
    for users. In the pairs it stood still until shortly before."""

    @property
    def plain_seconds(self) -> float:
        """Of a step."""
        return statistics.median(block.wall_seconds for block in self.plain)

    @property
    def loss_seconds(self) -> list[float]:
        """Of a step, in each pair."""
        return [a.wall_seconds - b.wall_seconds for a, b in zip(self.watched, self.plain, strict=True)]

    @property
    def device_loss_seconds(self) -> list[float]:
        return [a.device_seconds - b.device_seconds for a, b in zip(self.watched, self.plain, strict=True)]

    @property
    def blocked_seconds(self) -> list[float]:
        """Each time, ascending, in the blocks without a plain one where there are any."""
        alone = [seconds for block in self.alone for seconds in block.blocked_seconds[SETTLING_TIMES:]]
        return sorted(alone or [seconds for block in self.watched for seconds in block.blocked_seconds])

    @property
    def peak_bytes(self) -> int:
        return max(block.peak_bytes for block in self.watched)


def measure(training: Training, way: Way, num_pairs: int, steps_per_block: int, warm_up: Callable[[], None]) -> Pairs:
    """The pairs, each in the order that the one before had not. `warm_up` is what a way does once and for all."""
    pairs = Pairs(way, steps_per_block)
    warm_up()
    for index in range(num_pairs):
        watched_first = index % 2 == 1
        first = run_block(training, steps_per_block, way if watched_first else None)
        second = run_block(training, steps_per_block, None if watched_first else way)
        pairs.watched.append(first if watched_first else second)
        pairs.plain.append(second if watched_first else first)
    return pairs


def median_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """Median, and its 95 % interval by the bootstrap; of fewer than six values their whole range."""
    middle = statistics.median(values)
    if len(values) < 6:
        return middle, min(values), max(values)
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(values, k=len(values))) for _ in range(RESAMPLES))
    return middle, medians[int(0.025 * RESAMPLES)], medians[int(0.975 * RESAMPLES) - 1]


def percentile(ascending: Sequence[float], share: float) -> float:
    """The nearest rank: with fewer than a hundred values the 99th percentile is the largest."""
    return ascending[max(0, math.ceil(share * len(ascending)) - 1)]
