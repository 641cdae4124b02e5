from typing import Any

import pytest

from rankd.doctor.capacity import HEAD, advise, check_capacity


def row(run: str, demand: float, granted: float, once: float = 1.0, **more: Any) -> dict[str, Any]:
    return {"run": run, "demand": demand, "granted": granted, "once_seconds": once, **more}


def capacity(*runs: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Of one namespace, on two cores."""
    sums = {key: sum(run[key] for run in runs) for key in ("demand", "granted")}
    namespace = {"namespace": "team", "runs": list(runs), **sums}
    told = {"executor": "threads", "device": "cpu", "num_cores": 2, "num_slots": 2, "tier": "auto"}
    return {**told, "window_seconds": 120.0, "namespaces": [namespace], **sums, **more}


BEHIND = capacity(row("@team/x", 5.0, 1.0, 48.0), row("@team/y", 1.4, 1.0, 3.0))


def test_measuring_that_keeps_up() -> None:
    found = check_capacity(capacity(row("@team/x", 0.42, 0.42), share=0.2))
    assert (found.check, found.ok, found.advice) == ("capacity", True, "")
    assert found.text == (
        "measuring keeps up: 0.42 s of measuring asked for in each second, 2 slots on cpu, 20 % used in the last 120 s"
    )
    assert check_capacity(capacity(row("x", 2.1, 2.0))).ok, "within what rates and costs are known to"
    assert check_capacity(capacity(row("x", 0.9, 0.9), wish=5.0)).text.endswith(
        "; exactly, at every push, it would be 5.00 s"
    )


def test_how_far_measuring_is_behind_and_to_what_lag_it_will_come() -> None:
    found = check_capacity(BEHIND)
    assert not found.ok
    assert found.text.startswith("measuring is 3.2 × behind: 6.40 s of measuring asked for in each second, 2 slots on")
    assert found.text.endswith("; lag of run @team/x will reach 48 s, of run @team/y will reach 3.0 s")
    assert found.advice == (
        "add 12 cores, or a GPU (--device), or measure on other hosts (--executor ray), "
        "or push run @team/x 5 times as rarely (every_steps=)"
    )


def test_a_lag_that_nobody_would_notice_is_no_problem_but_told() -> None:
    found = check_capacity(capacity(row("x", 5.0, 2.0, once=3.0)))
    assert found.ok and "2.5 × behind" in found.text and "lag of run x will reach 1.5 s" in found.text and found.advice
    assert not check_capacity(capacity(row("x", 5.0, 2.0, once=3.0), lag_seconds=30.0)).ok


ADVICE = [
    ({"num_cores": 16, "num_slots": 8}, "add 10 cores, or a GPU (--device), or measure on other hosts"),
    (
        {"device": "cuda:0", "num_slots": 1},
        "add 5 GPUs (--device), or measure on other hosts (--executor ray), or",
    ),
    ({"executor": "ray://head:10001", "num_slots": 1}, "add 5 workers to the cluster, or push"),
    (
        {"tier": "exact", "executor": "ray"},
        "let the plan choose (--tier auto), or add 5 workers to the cluster",
    ),
]


@pytest.mark.parametrize(("told", "advice"), ADVICE)
def test_what_is_to_be_added_goes_by_what_there_is(told: dict[str, Any], advice: str) -> None:
    assert advise({**BEHIND, **told}).startswith(advice)


def test_the_run_that_is_to_push_less_is_the_one_that_lacks_most() -> None:
    told = capacity(row("small", 0.3, 0.2), row("@team/large", 9.0, 3.0))
    assert advise(told).endswith("or push run @team/large 3 times as rarely (every_steps=)")
    assert advise(capacity(row("x", 0.1, 0.1))) == ""


def test_the_table() -> None:
    run = row("@team/" + "x" * 40, 5.0, 1.0, num_waiting=12, waiting_bytes=48_300_000, lag_seconds=12.1, share=0.48)
    told = capacity({**run, "num_superseded": 1200, "num_dropped": 3})
    told["namespaces"][0] |= {"namespace": "", "others": {"num_runs": 17, "demand": 0.5}}
    table = check_capacity({**told, "others": {"num_namespaces": 4}}).table
    assert table[0] == HEAD and len({len(line) for line in table}) == 1
    assert table[1].startswith("(common) ") and table[3].startswith("  17 others ")
    assert table[2].split() == [f"@team/{'x' * 23}…", "12", "48.3", "12.1", "48", "%", "5.00", "1.00", "1203"]
    assert table[4].startswith("4 other namespaces ")
    assert check_capacity({}).table == ()


def test_another_version_may_tell_other_things() -> None:
    assert check_capacity({}).ok
    odd = {"demand": "x", "namespaces": [3, {"runs": 7}, {"runs": [None, {"run": 5}]}], "others": 2}
    assert check_capacity(odd).ok and check_capacity({**odd, "demand": 5.0}).ok
