"""Snapshot → Measurements, on whatever the executor offers."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter
from collections.abc import Callable

from rankd.executors import Executor, Part, Work
from rankd.parts.lora import Pairs
from rankd.plan import Planner
from rankd.records import METRIC_NAMES, Measurement, Reading, Snapshot, unmeasured_keys
from rankd.weights import DEFAULT_SETTINGS, Settings, split_of

MAX_PAIR_BYTES = 64 << 20
"""Of LoRA factors that wait for the other one of their step: ten times 200 layers of 16 × 4,096 in bfloat16, twice."""


class Measure:
    """Hands matrices to the executor, each in the tier that the plan has for it. A noticed snapshot (non-finite or
    all-zero) has nothing to be computed.

    `clock` gives the time that a measurement and its alerts carry.
    """

    def __init__(
        self,
        executor: Executor,
        clock: Callable[[], float],
        planner: Planner,
        counters: Counter[str],
        settings: Settings = DEFAULT_SETTINGS,
    ) -> None:
        """`settings` are the executor's."""
        self.executor = executor
        self.clock = clock
        self._planner = planner
        self._settings = settings
        self._pairs = Pairs(MAX_PAIR_BYTES, counters)

    async def __call__(self, snapshot: Snapshot) -> list[Measurement]:
        """Of the snapshot's parts and, last, of the whole. Raises MeasureError where it cannot be measured."""
        pair = self._pairs.add(snapshot)
        if snapshot.noticed:
            metrics = dict.fromkeys(METRIC_NAMES, 0.0 if snapshot.finite else None)
            nothing = unmeasured_keys(snapshot.finite)
            reading = Reading(metrics, "noticed", finite=snapshot.finite, zero=snapshot.zero, further=nothing)
            return [self._measurement(snapshot, Part(snapshot.layer, snapshot.shape, reading))]
        cut = split_of(snapshot.layer, snapshot.shape, snapshot.role, self._settings)
        *experts, rows, cols = cut.whole.shape
        tier = self._planner.choose(snapshot.key, rows, cols, time.monotonic(), math.prod(experts))
        partner = None if pair is None else pair[1] if pair[0] is snapshot else pair[0]
        parts = await asyncio.wrap_future(self.executor.submit(Work(snapshot, tier, partner)))
        whole = parts[-1].reading
        self._planner.learn(snapshot.key, tier, whole.tier, sum(part.reading.seconds for part in parts))
        return [self._measurement(snapshot, part) for part in parts]

    def _measurement(self, snapshot: Snapshot, part: Part) -> Measurement:
        return Measurement.of(
            part.reading,
            snapshot.run,
            part.layer,
            snapshot.step,
            part.shape,
            role=snapshot.role,
            source_dtype=snapshot.source_dtype,
            wire_dtype=snapshot.wire_dtype,
            time=self.clock(),
        )
