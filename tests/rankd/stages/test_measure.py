import asyncio
from concurrent.futures import Future

import numpy as np
import pytest

from rankd.executors import Measured
from rankd.metrics import METRICS
from rankd.records import Snapshot
from rankd.stages.measure import Measure


class WaitingExecutor:
    """Measures when the test says so."""

    num_slots = 1

    def __init__(self) -> None:
        self.futures: list[Future[Measured]] = []

    def submit(self, snapshot: Snapshot) -> Future[Measured]:
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        pass


def snapshot(finite: bool = True, zero: bool = False) -> Snapshot:
    return Snapshot("r", "w", 3, (2, 3, 4), "float16", "float32", np.zeros(0, np.uint8), "gradient", finite, zero)


@pytest.mark.parametrize(("finite", "zero", "value"), [(False, False, None), (True, True, 0.0)])
async def test_notices_are_not_computed(finite: bool, zero: bool, value: float | None) -> None:
    executor = WaitingExecutor()
    measurement = await Measure(executor, lambda: 12.5)(snapshot(finite, zero))
    assert executor.futures == []
    assert measurement.metrics == dict.fromkeys(METRICS, value)
    assert (measurement.finite, measurement.zero, measurement.method) == (finite, zero, "noticed")


async def test_says_what_was_measured_and_how() -> None:
    executor = WaitingExecutor()
    measuring = asyncio.create_task(Measure(executor, lambda: 12.5)(snapshot()))
    await asyncio.sleep(0)
    executor.futures[0].set_result(Measured({"stable_rank": 1.5}, "svdvals", 0.25, b"summary"))
    measurement = await measuring
    row = measurement.to_json()
    expected = {"run": "r", "layer": "w", "step": 3, "rows": 2, "cols": 12, "shape": [2, 3, 4], "role": "gradient"}
    expected |= {"source_dtype": "float32", "wire_dtype": "float16", "stable_rank": 1.5, "finite": True}
    assert expected | {"method": "svdvals", "measure_seconds": 0.25, "time": 12.5} == row
    assert measurement.summary == b"summary"


async def test_a_fault_of_the_executor_is_not_swallowed() -> None:
    class FaultyExecutor(WaitingExecutor):
        def submit(self, snapshot: Snapshot) -> Future[Measured]:
            future: Future[Measured] = Future()
            future.set_exception(ZeroDivisionError("ours"))
            return future

    with pytest.raises(ZeroDivisionError):
        await Measure(FaultyExecutor(), lambda: 12.5)(snapshot())
