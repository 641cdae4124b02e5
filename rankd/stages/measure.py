"""Snapshot → Measurement, on whatever the executor offers."""

from __future__ import annotations

import asyncio

from rankd.executors import Executor
from rankd.metrics import METRICS
from rankd.records import Measurement, Snapshot


class Measure:
    """Hands matrices to the executor. A noticed snapshot (non-finite or all-zero) has nothing to be computed."""

    def __init__(self, executor: Executor) -> None:
        self.executor = executor

    async def __call__(self, snapshot: Snapshot) -> Measurement:
        if snapshot.noticed:
            metrics: dict[str, float | None] = dict.fromkeys(METRICS, 0.0 if snapshot.finite else None)
            return _measurement(snapshot, metrics, "noticed", 0.0)
        measured = await asyncio.wrap_future(self.executor.submit(snapshot))
        return _measurement(snapshot, measured.metrics, measured.method, measured.seconds)


def _measurement(
    snapshot: Snapshot, metrics: dict[str, float | None], method: str, measure_seconds: float
) -> Measurement:
    return Measurement(
        run=snapshot.run,
        layer=snapshot.layer,
        step=snapshot.step,
        shape=snapshot.shape,
        finite=snapshot.finite,
        zero=snapshot.zero,
        metrics=metrics,
        role=snapshot.role,
        method=method,
        source_dtype=snapshot.source_dtype,
        wire_dtype=snapshot.wire_dtype,
        measure_seconds=measure_seconds,
    )
