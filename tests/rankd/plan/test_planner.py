import itertools
import json
import logging
import math
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from simulated_measuring import World, snapshot

from rankd.plan import MeasureConfig, Planner
from rankd.plan.costs import Size
from rankd.plan.fair import CUT, MIN_TRUST
from rankd.plan.layer import NUM_DIRECT
from rankd.plan.planner import TELL_SECONDS
from rankd.records import Tier

GPT2_SMALL = [Size(768, 2304), Size(768, 768), Size(768, 3072), Size(3072, 768)] * 12
LLAMA_7B = [*[Size(4096, 4096)] * 128, *[Size(11008, 4096)] * 96]
MIXED = [*[Size(768, 768)] * 30, *[Size(4096, 4096)] * 6]


def planner(max_layers: int = 1 << 18, **settings: Any) -> Planner:
    return Planner(MeasureConfig(**settings), lambda: 2, lambda: "cpu", lambda: 0.25, max_layers)


@pytest.mark.parametrize("slower", [0.3, 1.0, 3.0])
def test_a_light_load_gets_all_exact(slower: float) -> None:
    world = World(slower=slower)
    keys = world.add_run("r", GPT2_SMALL, interval=60.0)
    assert world.play(1200.0) < 0.4
    assert set(world.tiers(keys)) == {"exact"} and world.num_changes == 0
    assert world.planner.describe()["layers"] == {"exact": 48}


def test_large_layers_begin_with_estimates_and_rise_once_there_is_seen_to_be_time() -> None:
    world = World(jitter=0.0)
    keys = world.add_run("r", LLAMA_7B[120:140], interval=600.0)
    world.play(599.0)
    assert world.tiers(keys) == {"estimate": 20}
    world.play(6000.0)
    assert set(world.tiers(keys, newest=5)) == {"exact"} and world.num_changes == 20


@pytest.mark.parametrize(
    ("world", "sizes", "interval"),
    [
        (World(), GPT2_SMALL, 3.0),
        (World(slower=4.0), GPT2_SMALL, 10.0),
        (World(slower=0.3), LLAMA_7B[120:140], 20.0),
        (World(), LLAMA_7B[120:140], 60.0),
        (World(), MIXED, 14.0),
        (World(device="cuda", num_slots=1), LLAMA_7B, 10.0),
        (World(device="cuda", num_slots=1, slower=3.0), LLAMA_7B, 10.0),
        (World(device="cuda", num_slots=1, settings={"max_share": 0.1}), LLAMA_7B, 30.0),
    ],
)
def test_a_heavy_load_keeps_to_its_share_and_nothing_wavers(world: World, sizes: list[Size], interval: float) -> None:
    keys = world.add_run("r", sizes, interval)
    world.play(max(600.0, 300 * interval))
    before = world.num_changes
    share, wanted = world.play(60 * interval), world.planner.config.max_share
    assert 0.8 * wanted < share < 1.2 * wanted
    assert world.planner.describe()["predicted_share"] == pytest.approx(share, rel=0.2)
    assert world.num_changes - before <= 0.01 * 60 * len(keys), "of all measurements"
    every = world.planner.describe()["max_every"]
    for key in keys:
        assert set(world.got[key][-2 * every :]) & {"estimate", "exact"}, "effective rank never vanishes"
    assert world.lag < 2 * interval


def test_estimates_are_for_the_dear_ones() -> None:
    world = World()
    keys = world.add_run("r", MIXED, interval=40.0)
    world.play(3000.0)
    assert set(world.tiers(keys[:30])) == {"exact"}
    assert world.tiers(keys[30:]).most_common(1)[0][0] == "estimate"


def test_more_than_there_is_time_for_still_gets_effective_ranks_now_and_then() -> None:
    world = World(settings={"max_every": 8})
    keys = world.add_run("r", LLAMA_7B[120:140], interval=2.0)
    world.play(300.0)
    assert world.planner.describe()["max_every"] == 1, "as long as there are few readings, none is left out"
    assert set(world.tiers(keys)) == {"estimate"}
    world.play(12_000.0)
    assert world.planner.describe()["max_every"] == 8
    for key in keys:
        newest = world.got[key][-16:]
        assert newest.count("norms") == 14 and newest.count("estimate") == 2


def test_when_the_load_goes_the_plan_rises_again() -> None:
    world = World()
    keys = world.add_run("r", GPT2_SMALL, interval=0.7)
    world.play(600.0)
    assert world.tiers(keys, newest=8)["norms"] > 100
    world.intervals["r"] = 30.0
    world.play(4000.0)
    assert set(world.tiers(keys)) == {"exact"} and world.planner.describe()["num_thinned"] == 0


def test_one_of_two_gpus_that_is_lost_takes_its_slot_along_and_brings_it_back() -> None:
    world = World(device="cuda", num_slots=2)
    world.add_run("r", LLAMA_7B[::8], interval=2.0)
    for num_slots in (2, 1, 2):
        world.num_slots = num_slots
        world.play(1500.0)
        assert 0.8 * world.planner.config.max_share < world.play(300.0) < 1.2 * world.planner.config.max_share


def test_a_lost_gpu_makes_the_plan_step_down() -> None:
    world = World(device="cuda", num_slots=1)
    keys = world.add_run("r", GPT2_SMALL, interval=3.0)
    world.play(300.0)
    assert set(world.tiers(keys)) == {"exact"}
    world.device = "cpu"
    world.play(300.0)
    assert world.play(300.0) < 0.6 and world.planner.describe()["num_thinned"] > 20


def lag(world: World, begin: float, num_seconds: int) -> list[float]:
    """Pushes that are not measured, each second; the limit of run "r" after each review."""
    limits = []
    for second in range(num_seconds):
        for i in range(48):
            world.planner.arrived(snapshot(f"{i}", step=1000 + second), begin + second)
            world.planner._layers["r", f"{i}", "weight"].interval = 10.0  # as if pushes were not more frequent
        world.planner.review(begin + second)
        limits.append(world.planner._brakes.limits.get("r", math.inf))
    return limits


def test_a_plan_that_should_do_and_lags_all_the_same_steps_down() -> None:
    """As where a measurement blocks others in a way that its own seconds do not show."""
    world = World(jitter=0.0)
    world.add_run("r", GPT2_SMALL, interval=10.0)
    world.play(1000.0)
    assert world.planner.describe()["num_thinned"] == 0
    demand = 2 * world.planner.describe()["predicted_share"]
    limits = lag(world, 1000.0, 100)
    assert limits[-1] < 0.2 and world.planner.describe()["num_thinned"] > 40
    assert world.planner.describe()["num_lagging"] == 48
    cuts = [(second, limit) for second, limit in enumerate(limits) if limit < ([math.inf, *limits])[second]]
    assert cuts[0][1] == pytest.approx(CUT * demand, rel=0.01), "a part of what it takes, not all at once"
    for (second, limit), (later, lower) in itertools.pairwise(cuts):
        assert later - second >= 20, "what waits already passes first"
        assert max(MIN_TRUST, 0.8 * CUT * limit) <= lower <= max(MIN_TRUST, CUT * limit)
    world.play(9000.0)
    assert not world.planner._brakes.limits and world.planner.describe()["num_thinned"] == 0


def test_a_layer_whose_estimates_always_fall_is_asked_for_exact_directly() -> None:
    falling: Callable[..., bool] = lambda key: key[1] == "0"  # noqa: E731
    world = World(slower=0.3, falls=falling)
    asked: list[Tier] = []
    keys = world.add_run("r", LLAMA_7B[120:140], interval=20.0)
    choose = world.planner.choose

    def spy(key: Any, *size: Any) -> Tier:
        tier = choose(key, *size)
        if key == keys[0] and tier != "norms":
            asked.append(tier)
        return tier

    world.planner.choose = spy  # type: ignore[method-assign]
    share = [world.play(4000.0) for _ in range(3)][-1]
    assert 0.4 < share < 0.6
    assert asked.count("estimate") < 0.1 * len(asked), "tried again, but seldom"
    first = asked.index("exact")
    assert asked[first : first + NUM_DIRECT] == ["exact"] * NUM_DIRECT
    assert world.tiers(keys[1:])["estimate"] > 200, "the others are not its victims"


@pytest.mark.parametrize("tier", ["norms", "estimate", "exact"])
def test_a_tier_chosen_by_hand_is_what_all_get(tier: Tier) -> None:
    world = World(settings={"tier": tier}, falls=lambda key: True)
    keys = world.add_run("r", MIXED, interval=2.0)
    world.play(300.0)
    got = "exact" if tier == "estimate" else tier  # they fall, each time anew
    assert set(world.tiers(keys)) == {got} and world.planner.describe()["layers"] == {tier: 36}


def test_10_000_layers() -> None:
    """A choice and a review ask for the costs of as few sizes as there are."""
    plan, now, asked = planner(), 0.0, list[Size]()
    predict = plan.costs.predict

    def counted(device: str, tier: Tier, size: Size) -> float:
        asked.append(size)
        return predict(device, tier, size)

    plan.costs.predict = counted  # type: ignore[method-assign]
    keys = [("r", f"{i}", "weight") for i in range(10_000)]
    for now in (0.0, 10.0, 20.0):
        for key in keys:
            plan.arrived(snapshot(key[1], step=1000 + int(now)), now)
            plan._layers[key].num_chosen += 1000  # so that they may be thinned
        for i, key in enumerate(keys):
            plan.choose(key, 64 + i % 40, 768, now)
        assert len(asked) <= (0 if now else 2 * len(keys)), "a layer that is known is not thought about again"
        for key in keys:
            plan.learn(key, "exact", "exact", 0.01)
        asked.clear()
        plan.review(now + 10)
        assert len(asked) == 3 * 40
        asked.clear()
    said = plan.describe()
    assert said["layers"] == {"exact": 10_000} and said["num_thinned"] > 5_000


def test_memory_is_bounded_and_runs_are_forgotten() -> None:
    plan = planner(max_layers=100)
    for i in range(300):
        plan.arrived(snapshot(f"{i}"), float(i))
        plan.choose(("r", f"{i}", "weight"), 8, 8, float(i))
    assert len(plan._layers) == 100 and ("r", "299", "weight") in plan._layers
    plan.choose(("s", "w", "weight"), 8, 8, 300.0)
    plan.forget("r")
    assert list(plan._layers) == [("s", "w", "weight")]
    plan.learn(("r", "1", "weight"), "exact", "exact", 1.0)  # it was under way


def test_notices_are_no_load_and_silent_layers_leave_the_plan() -> None:
    plan = planner()
    for now in (0.0, 10.0):
        plan.arrived(snapshot("nan", finite=False), now)
        plan.arrived(snapshot("w"), now)
        plan.choose(("r", "w", "weight"), 768, 768, now)
    plan.review(11.0)
    said = plan.describe()
    assert said["layers"] == {"exact": 1} and 0 < said["predicted_share"] < 0.01
    plan.review(20_000.0)
    assert plan.describe()["layers"] == {} and plan.describe()["predicted_share"] == 0


def test_a_layer_of_another_shape_is_planned_anew() -> None:
    plan = planner()
    assert plan.choose(("r", "w", "weight"), 64, 64, 0.0) == "exact"
    assert plan.choose(("r", "w", "weight"), 8192, 8192, 1.0) == "estimate"
    assert plan.choose(("r", "w", "weight"), 768, 768, 2.0, num_matrices=1000) == "exact", "no estimate is worth it"


def test_the_description_is_json_and_a_change_is_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    plan = planner()
    for i in range(int(3 * TELL_SECONDS)):
        key = ("r", f"{i}", "weight")
        plan.arrived(snapshot(key[1]), float(i))
        plan.choose(key, 64, 64, float(i))
        plan.review(float(i))
    assert len(caplog.messages) == 3
    assert caplog.messages[0].startswith("plan num_exact=1 tier=auto device=cpu num_thinned=0 max_every=1 ")
    assert json.loads(json.dumps(plan.describe()))["lag_seconds"] == 0.25


def test_a_review_on_a_thread_goes_on_beside_everything_else() -> None:
    """Errors of either side would be raised; what is left is a plan like any other."""
    plan = planner(max_layers=3000)
    keys = [(f"{i % 7}", f"{i}", "weight") for i in range(4000)]
    done = threading.Event()
    usual = sys.getswitchinterval()

    def measure() -> None:
        for turn in range(6):
            for run in range(7):
                plan.forget(f"{run if turn % 2 else None}")
            for i, key in enumerate(keys):
                plan.arrived(snapshot(key[1], key[0], 1000 + turn), float(turn))
                tier = plan.choose(key, 64 + (i + turn) % 90, 768, float(turn))
                plan.learn(key, tier, "exact", 0.01)

    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(1) as pool:
            loop = pool.submit(measure)
            loop.add_done_callback(lambda _: done.set())
            while not done.is_set():
                plan.revise(7.0)
            loop.result()
    finally:
        sys.setswitchinterval(usual)
    plan.revise(7.0)
    assert sum(plan.describe()["layers"].values()) == len(plan._layers) == 3000
