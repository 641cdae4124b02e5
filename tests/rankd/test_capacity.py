import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from rankd.auth import OWNER, Grant
from rankd.capacity import MAX_NAMESPACES, MAX_RUNS, Capacity
from rankd.mailbox import Mailbox
from rankd.plan import Demand, MeasureConfig, Planner
from rankd.records import Snapshot


def capacity(demands: dict[str, Demand], box: Mailbox | None = None) -> Capacity:
    planner = Planner(MeasureConfig(), lambda: 2, lambda: "cpu", lambda: 0.0, max_layers=100)
    planner.demands = demands
    return Capacity(box or Mailbox(1000, 2, Counter()), planner, lambda: "cpu", "threads")


def snapshot(run: str, layer: str, step: int = 1) -> Snapshot:
    return Snapshot(run, layer, step, (1, 4), "float32", "float32", np.zeros(4, np.uint8))


def test_what_each_asks_for_and_what_fairness_leaves_of_it() -> None:
    demands = {f"@many/{i}": Demand(1.0, 2.0, 3.0) for i in range(8)}
    told = capacity({**demands, "@one/r": Demand(0.25, 0.5, 0.1)}).describe()
    assert (told["demand"], told["granted"], told["num_slots"], told["num_runs"]) == (8.25, 2.0, 2, 9)
    many, one = told["namespaces"]
    assert (many["namespace"], many["num_runs"], many["demand"], many["granted"]) == ("many", 8, 8.0, 1.75)
    assert (one["namespace"], one["granted"], one["wish"]) == ("one", 0.25, 0.5)
    assert [row["granted"] for row in many["runs"]] == pytest.approx([1.75 / 8] * 8, abs=1e-4)
    assert "others" not in told and "others" not in many


def test_what_there_is_now_and_what_was_lost_since_the_start() -> None:
    now = [3, "cuda:0,cuda:1"]
    planner = Planner(MeasureConfig(), lambda: int(now[0]), lambda: "cpu", lambda: 0.0, max_layers=100)
    found = Capacity(Mailbox(1000, 2, Counter()), planner, lambda: str(now[1]), "processes")
    keys = ("num_slots", "device", "num_slots_lost", "device_lost")
    for *now[:], num_lost, lost in (
        (3, "cuda:0,cuda:1", 0, ""),
        (1, "cuda:1", 2, "cuda:0"),
        (2, "cpu", 1, "cuda:0,cuda:1"),
        (4, "cuda:0,cuda:1", 0, ""),
    ):
        told = found.describe()
        assert [told[key] for key in keys] == [*now, num_lost, lost]


def test_what_waits_and_what_became_of_the_rest() -> None:
    now = 0.0
    box = Mailbox(8, 2, Counter(), clock=lambda: now)
    for layer, step in (("a", 1), ("a", 2), ("b", 1), ("c", 1)):
        box.put(snapshot("r", layer, step))
    taken = box._next()
    assert taken is not None
    box.done(taken, 3.0)
    now = 10.0
    told = capacity({}, box).describe()
    (namespace,) = told["namespaces"]
    (row,) = namespace["runs"]
    assert row == {
        **{"run": "r", "num_waiting": 1, "waiting_bytes": 4, "lag_seconds": 10.0, "share": 0.15},
        **{"demand": 0.0, "wish": 0.0, "granted": 0.0, "once_seconds": 0.0},
        **{"num_superseded": 1, "num_dropped": 1, "num_measured": 1},
    }
    for key in row.keys() - {"run"}:
        assert told[key] == row[key]


def test_it_is_of_bounded_size_and_those_that_lack_most_come_first() -> None:
    demands = {f"@{'n' * 100}{i}/{'r' * 800}{j}": Demand(i + j, 0.0, 0.0) for i in range(40) for j in range(25)}
    told = capacity(demands).describe()
    assert len(told["namespaces"]) == MAX_NAMESPACES
    assert told["others"]["num_namespaces"] == 40 - MAX_NAMESPACES
    assert told["namespaces"][0]["namespace"].endswith("n39")
    first = told["namespaces"][0]
    assert len(first["runs"]) == MAX_RUNS and first["others"]["num_runs"] == 25 - MAX_RUNS
    assert first["runs"][0]["run"].endswith("r24")
    rows = [*told["namespaces"], told["others"]]
    assert sum(row["demand"] for row in rows) == told["demand"] == sum(demand.per_second for demand in demands.values())
    assert len(json.dumps(told)) < 100_000


def test_who_may_see_what() -> None:
    demands = {run: Demand(3.0, 3.0, 1.0) for run in ("@alice/r", "@bob/r", "r")}
    seen: dict[str, Any] = {}
    for name, grant in {"owner": OWNER, "alice": Grant("a", namespace="alice"), "common": Grant("c")}.items():
        seen[name] = capacity(demands).describe(grant.covers)
    assert seen["owner"]["demand"] == 9.0 and len(seen["owner"]["namespaces"]) == 3
    for name, run in (("alice", "@alice/r"), ("common", "r")):
        assert [row["run"] for row in seen[name]["namespaces"][0]["runs"]] == [run]
        assert (len(seen[name]["namespaces"]), seen[name]["demand"], seen[name]["num_runs"]) == (1, 3.0, 1)
        assert seen[name]["granted"] == pytest.approx(2 / 3, abs=1e-4)
