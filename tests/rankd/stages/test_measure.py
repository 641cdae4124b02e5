import asyncio
from collections import Counter
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest
import torch
from works import make, snapshot

from rankd.executors import Part, Settings, Work, settings_of
from rankd.metrics import METRICS
from rankd.plan import MeasureConfig, Planner
from rankd.plan.costs import Size
from rankd.records import METRIC_NAMES, Measurement, Reading, Snapshot, Tier
from rankd.stages.measure import Measure
from rankd.weights import DEFAULT_SETTINGS


class WaitingExecutor:
    """Measures when the test says so."""

    num_slots = num_workers = 1
    device = torch.device("cpu")

    def __init__(self) -> None:
        self.works: list[Work] = []
        self.futures: list[Future[list[Part]]] = []

    def submit(self, work: Work) -> Future[list[Part]]:
        self.works.append(work)
        self.futures.append(Future())
        return self.futures[-1]

    def close(self) -> None:
        pass


class Side:
    """A stage with what it uses."""

    def __init__(self, name: str = "", settings: Settings = DEFAULT_SETTINGS, tier: str = "auto") -> None:
        self.waiting = WaitingExecutor()
        self.executor = make(name, settings=settings) if name else self.waiting
        self.planner = Planner(MeasureConfig(tier=tier), lambda: 1, lambda: "cpu", lambda: 0.0, 100)  # type: ignore[arg-type]
        self.counters: Counter[str] = Counter()
        self.measure = Measure(self.executor, lambda: 12.5, self.planner, self.counters, settings)

    async def rows(self, item: Snapshot) -> dict[str, Measurement]:
        return {row.layer: row for row in await self.measure(item)}


def noticed(finite: bool = True, zero: bool = False, layer: str = "w") -> Snapshot:
    return Snapshot("r", layer, 3, (2, 3, 4), "float16", "float32", np.zeros(0, np.uint8), "gradient", finite, zero)


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("finite", "zero", "value"), [(False, False, None), (True, True, 0.0)])
async def test_notices_are_not_computed(finite: bool, zero: bool, value: float | None) -> None:
    side = Side()
    (measurement,) = await side.measure(noticed(finite, zero, "h.c_attn.weight"))
    assert side.waiting.futures == [] and side.planner._layers == {}
    assert measurement.metrics == dict.fromkeys(METRIC_NAMES, value)
    assert (measurement.finite, measurement.zero, measurement.method) == (finite, zero, "noticed")
    assert measurement.shape == (2, 3, 4) and "parts" not in measurement.extra


async def test_says_what_was_measured_and_how() -> None:
    side = Side()
    measuring = asyncio.create_task(side.measure(noticed()))
    await asyncio.sleep(0)
    bars = {"stable_rank": (1.25, 1.75)}
    reading = Reading({"stable_rank": 1.5}, "guess", "norms", bars, further={"why": "not"}, summary=b"s", seconds=0.25)
    side.waiting.futures[0].set_result([Part("w:q", (1, 12), reading), Part("w", (2, 3, 4), reading)])
    part, whole = await measuring
    expected = {"run": "r", "layer": "w", "step": 3, "rows": 2, "cols": 12, "shape": [2, 3, 4], "role": "gradient"}
    expected |= {"source_dtype": "float32", "wire_dtype": "float16", "stable_rank": 1.5, "finite": True}
    expected |= {"tier": "norms", "stable_rank_low": 1.25, "stable_rank_high": 1.75, "why": "not"}
    expected |= {"method": "guess", "measure_seconds": 0.25, "time": 12.5}
    assert whole.to_json() == expected
    assert part.to_json() == expected | {"layer": "w:q", "rows": 1, "shape": [1, 12]}
    assert part.summary == whole.summary == b"s"


async def test_a_fault_of_the_executor_is_not_swallowed() -> None:
    side = Side()
    measuring = asyncio.create_task(side.measure(noticed()))
    await asyncio.sleep(0)
    side.waiting.futures[0].set_exception(ZeroDivisionError("ours"))
    with pytest.raises(ZeroDivisionError):
        await measuring


@pytest.mark.parametrize("tier", ["norms", "estimate", "exact"])
async def test_the_plan_says_in_which_tier_and_hears_what_it_took(tier: Tier) -> None:
    side = Side("threads", tier=tier)
    item = snapshot(randn(300, 260))
    assert (await side.rows(item))["w"].tier == tier
    layer = side.planner._layers[item.key]
    assert (layer.size, layer.num_chosen) == (Size(300, 260), 1)
    assert side.planner._busy_seconds > 0
    before = side.planner.costs.predict("cpu", tier, Size(300, 260))
    side.planner.learn(item.key, tier, tier, 100.0)
    assert side.planner.costs.predict("cpu", tier, Size(300, 260)) > before
    side.executor.close()


@pytest.mark.parametrize(
    ("layer", "shape", "size"),
    [
        ("w", (6, 8), Size(6, 8)),
        ("conv.weight", (32, 16, 16), Size(32, 256)),
        ("conv2d", (8, 4, 3, 3), Size(8, 36)),
        ("experts.w", (5, 16, 20), Size(16, 20, 5)),
        ("h.qkv.weight", (48, 16), Size(48, 16)),
        ("kernel", (64, 32, 3), Size(64, 96)),
        ("x.mine", (3, 4, 5), Size(4, 5, 3)),
        ("x.flat", (3, 20, 20), Size(3, 400)),
    ],
)
async def test_the_plan_reckons_with_the_matrices_that_are_measured(
    layer: str, shape: tuple[int, ...], size: Size
) -> None:
    side = Side("inline", settings_of(MeasureConfig(split={"*.mine": "experts", "*.flat": "none"})))
    item = snapshot(randn(*shape), layer)
    await side.measure(item)
    assert side.planner._layers[item.key].size == size


async def test_a_fused_weight_costs_what_all_its_parts_cost() -> None:
    side = Side()
    measuring = asyncio.create_task(side.measure(snapshot(randn(48, 16), "h.qkv.weight")))
    await asyncio.sleep(0)
    reading = Reading({}, "m", seconds=0.25)
    side.waiting.futures[0].set_result([Part(name, (1, 1), reading) for name in ("a", "b", "c")])
    await measuring
    assert side.planner._busy_seconds == 0.75


@pytest.mark.parametrize("first", ["A", "B"])
async def test_a_product_comes_with_the_second_factor_of_a_step(first: str) -> None:
    side = Side("inline")
    factors = {"A": randn(4, 30), "B": randn(20, 4)}
    second = "B" if first == "A" else "A"
    one = snapshot(factors[first], f"q.lora_{first}.weight", step=7)
    other = snapshot(factors[second], f"q.lora_{second}.weight", step=7)
    assert list(await side.rows(one)) == [one.layer]
    rows = await side.rows(other)
    assert list(rows) == ["q.lora_BA.weight", other.layer]
    product = rows["q.lora_BA.weight"]
    sigma = torch.linalg.svdvals(factors["B"].double() @ factors["A"].double())
    assert (product.step, product.shape, product.metrics.keys()) == (7, (20, 30), METRICS.keys())
    assert product.metrics["spectral_norm"] == pytest.approx(float(sigma[0]), rel=1e-6)
    assert list(await side.rows(other)) == [other.layer], "once"


async def test_factors_of_two_steps_or_that_do_not_fit_have_no_product() -> None:
    side = Side("inline")
    await side.measure(snapshot(randn(4, 30), "q.lora_A", step=1))
    assert list(await side.rows(snapshot(randn(20, 4), "q.lora_B", step=2))) == ["q.lora_B"]
    assert list(await side.rows(snapshot(randn(5, 30), "q.lora_A", step=2))) == ["q.lora_A"]
    assert side.counters == {"dropped_lora_misfits": 1}


async def test_a_factor_that_is_all_zero_has_no_product() -> None:
    side = Side("inline")
    await side.measure(snapshot(randn(4, 24), "q.lora_A", step=3))
    zero = replace(noticed(zero=True, layer="q.lora_B"), role="weight")
    assert list(await side.rows(zero)) == ["q.lora_B"]
    assert list(await side.rows(snapshot(randn(20, 4), "q.lora_B", step=3))) == ["q.lora_B"], "nothing waits for it"
