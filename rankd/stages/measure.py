"""Snapshot → Measurement, on whatever the executor offers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from rankd.executors import Executor, Measured
from rankd.metrics import METRICS
from rankd.records import Measurement, Snapshot


class Measure:
    """Hands matrices to the executor. A noticed snapshot (non-finite or all-zero) has nothing to be computed.

    `clock` gives the time that a measurement and its alerts carry.
    """

    def __init__(self, executor: Executor, clock: Callable[[], float]) -> None:
        self.executor = executor
        self.clock = clock

    async def __call__(self, snapshot: Snapshot) -> Measurement:
        """Raises MeasureError where this one matrix cannot be measured."""
        if snapshot.noticed:
            measured = Measured(dict.fromkeys(METRICS, 0.0 if snapshot.finite else None), "noticed", 0.0)
        else:
            measured = await asyncio.wrap_future(self.executor.submit(snapshot))
        return Measurement(
            run=snapshot.run,
            layer=snapshot.layer,
            step=snapshot.step,
            shape=snapshot.shape,
            finite=snapshot.finite,
            zero=snapshot.zero,
            metrics=measured.metrics,
            role=snapshot.role,
            method=measured.method,
            source_dtype=snapshot.source_dtype,
            wire_dtype=snapshot.wire_dtype,
            measure_seconds=measured.seconds,
            time=self.clock(),
            summary=measured.summary,
        )
