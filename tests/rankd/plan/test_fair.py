import math

import pytest
from simulated_measuring import World

from rankd.plan.costs import Size
from rankd.plan.fair import CUT, MIN_TRUST, PAUSE_SECONDS, RECOVERY, Brakes, RunLoad, allot, equal_shares, level

GPT2_SMALL = [Size(768, 2304), Size(768, 768), Size(768, 3072), Size(3072, 768)] * 12


def test_what_one_does_not_want_the_others_share() -> None:
    assert level([], 1.0) == level([0.5, 0.5], 1.0) == math.inf
    assert level([0.1, 5.0, 0.2], 1.0) == pytest.approx(0.7)
    assert level([0.1, 5.0, 9.0], 1.0) == pytest.approx(0.45)
    assert level([3.0], 1.0) == 1.0


def test_namespaces_come_first_and_then_their_runs() -> None:
    many = {f"@many/{i}": 1.0 for i in range(9)}
    assert allot({**many, "@one/r": 0.4, "plain": 9.0}, 3.0) == pytest.approx(
        {**dict.fromkeys(many, 1.3 / 9), "@one/r": math.inf, "plain": 1.3}
    )
    assert equal_shares({**many, "@one/r": 0.4}, 1.0) == pytest.approx({**dict.fromkeys(many, 0.5 / 9), "@one/r": 0.5})


def test_a_loud_run_thins_its_own_layers_only() -> None:
    world = World()
    quiet = world.add_run("quiet", GPT2_SMALL, interval=30.0)
    loud = world.add_run("loud", GPT2_SMALL, interval=1.5)
    share = [world.play(1000.0) for _ in range(3)][-1]
    assert {tier for key in quiet for tier in world.got[key]} == {"exact"}, "from first to last"
    assert world.tiers(loud, newest=8)["norms"] > 200
    assert 0.4 < share < 0.6


def test_a_run_that_became_quiet_rises_though_another_is_loud() -> None:
    world = World()
    keys = world.add_run("r", GPT2_SMALL, interval=0.7)
    world.add_run("loud", GPT2_SMALL, interval=0.7)
    world.play(1000.0)
    assert world.tiers(keys, newest=8)["norms"] > 200
    world.intervals["r"] = 30.0
    world.play(4000.0)
    assert set(world.tiers(keys, newest=8)) == {"exact"}


def test_runs_that_are_loud_alike_get_alike_and_many_of_one_namespace_no_more_than_one() -> None:
    world = World()
    runs = ["@many/a", "@many/b", "@many/c", "@one/r"]
    keys = {run: world.add_run(run, GPT2_SMALL, interval=3.0) for run in runs}
    world.play(3000.0)
    full = {run: sum(tier == "exact" for key in keys[run] for tier in world.got[key][-64:]) for run in runs}
    assert full["@many/a"] == pytest.approx(full["@many/c"], rel=0.3)
    assert full["@one/r"] > 2 * full["@many/b"]


def run(demand: float, is_behind: bool = False) -> RunLoad:
    return RunLoad([], demand, demand, is_behind)


def test_a_run_that_lags_is_cut_alone_and_gets_it_back() -> None:
    brakes = Brakes()
    runs = {"lags": run(0.6, is_behind=True), "calm": run(0.2), "loud": run(0.7)}
    brakes.follow(runs, 1.0, lag=5.0, now=0.0)
    assert brakes.limits == {"lags": pytest.approx(CUT * 0.6)}
    brakes.follow(runs, 1.0, lag=5.0, now=19.0)
    assert brakes.limits == {"lags": pytest.approx(CUT * 0.6)}, "what waits already has to pass first"
    brakes.follow(runs, 1.0, lag=500.0, now=20.0)
    once_more = CUT**2 * 0.6
    assert brakes.limits == {"lags": pytest.approx(once_more)}
    brakes.follow(runs, 1.0, lag=500.0, now=519.0)
    assert brakes.limits == {"lags": pytest.approx(once_more)}
    for _ in range(9):
        brakes.follow({"lags": run(0.2), "calm": run(0.2)}, 1.0, lag=0.0, now=600.0)
    assert brakes.limits == {"lags": pytest.approx(once_more * RECOVERY**9)}
    for _ in range(60):
        brakes.follow({"lags": run(0.2)}, 1.0, lag=0.0, now=600.0)
    assert brakes.limits == {}


def test_where_a_run_lags_that_takes_little_those_are_cut_that_take_much() -> None:
    brakes = Brakes()
    brakes.follow({"victim": run(0.1, is_behind=True), "loud": run(0.7), "calm": run(0.1)}, 1.0, 0.0, 0.0)
    assert brakes.limits == {"loud": pytest.approx(CUT * 0.7)}


def test_where_none_takes_much_those_are_cut_that_lag_to_a_part_of_an_equal_share_at_last() -> None:
    brakes = Brakes()
    for turn in range(50):
        brakes.follow({f"{i}": run(0.001, is_behind=i < 10) for i in range(100)}, 1.0, 0.0, turn * PAUSE_SECONDS)
    assert brakes.limits == {f"{i}": pytest.approx(MIN_TRUST / 100) for i in range(10)}
