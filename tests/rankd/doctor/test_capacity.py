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
        "or push run @team/x 5 times and run @team/y 2 times as rarely (every_steps=)"
    )


def test_a_lag_that_nobody_would_notice_is_no_problem_but_told() -> None:
    found = check_capacity(capacity(row("x", 5.0, 2.0, once=3.0)))
    assert found.ok and found.text.startswith(
        "2.5 × more is pushed than measured; the newest are measured, lag 1.5 s of 10 allowed: 5.00 s of measuring"
    )
    assert found.text.endswith("; lag of run x will reach 1.5 s") and found.advice and "behind" not in found.text
    late = check_capacity(capacity(row("x", 5.0, 2.0, once=3.0), lag_seconds=30.0))
    assert not late.ok and late.text.startswith("measuring is 2.5 × behind: ")


RESTART = "to the cluster and restart the daemon, which counts its slots when it starts"
ADVICE = [
    ({"num_cores": 16, "num_slots": 8}, "add 10 cores, or a GPU (--device), or measure on other hosts"),
    (
        {"device": "cuda:0", "num_slots": 1},
        "add 5 GPUs (--device), or measure on other hosts (--executor ray), or",
    ),
    ({"executor": "ray://head:10001", "num_slots": 1}, f"add 5 workers {RESTART}, or push"),
    (
        {"tier": "exact", "executor": "ray"},
        f"let the plan choose (--tier auto), or add 5 workers {RESTART}",
    ),
]


@pytest.mark.parametrize(("told", "advice"), ADVICE)
def test_what_is_to_be_added_goes_by_what_there_is(told: dict[str, Any], advice: str) -> None:
    assert advise({**BEHIND, **told}).startswith(advice)


def test_pushing_as_rarely_as_is_advised_cures_all_runs() -> None:
    told = capacity(row("small", 0.3, 0.2), row("@team/large", 9.0, 3.0))
    assert advise(told).endswith("or push run @team/large 3 times and run small 2 times as rarely (every_steps=)")
    assert advise(capacity(row("x", 9.0, 2.0), row("y", 0.1, 0.1))).endswith(
        "push run x 5 times as rarely (every_steps=)"
    )
    alike = [row(f"r{n}", 1.5, 0.2) for n in range(10)]
    assert advise(capacity(*alike)).endswith("or push each of 10 runs about 8 times as rarely (every_steps=)")
    told = capacity(*alike[:8])
    told["namespaces"][0]["others"] = {"num_runs": 2, "demand": 3.0, "granted": 0.2}
    assert advise(told).endswith("or push all runs about 9 times as rarely (every_steps=)")
    told = capacity(row("x", 9.0, 2.0), others={"num_namespaces": 4, "demand": 9.0, "granted": 1.0})
    assert advise(told).endswith("or push all runs about 6 times as rarely (every_steps=)")
    assert advise(capacity(row("x", 0.1, 0.1))) == ""


def test_who_is_told_of_one_namespace_is_not_told_that_the_daemon_keeps_up() -> None:
    found = check_capacity(capacity(row("x", 0.42, 0.42), share=0.2), "")
    assert found.ok and found.text == (
        "in your namespace (the common one), runs get what they ask for: 0.42 s of measuring asked for in each second, "
        "2 slots on cpu that all namespaces share, 20 % used by these runs in the last 120 s"
    )
    found = check_capacity(BEHIND, "team")
    assert not found.ok and found.text.startswith("in your namespace (team), measuring is 3.2 × behind: 6.40 s")
    assert found.advice == (
        "push run @team/x 5 times and run @team/y 2 times as rarely (every_steps=), "
        "or ask an administrator of the daemon for more slots"
    )
    assert check_capacity(capacity(row("x", 5.0, 2.0, once=3.0)), "team").text.startswith(
        "in your namespace (team), 2.5 × more is pushed than measured; the newest"
    )


def test_why_there_are_fewer_slots() -> None:
    lost = capacity(row("x", 0.4, 0.4), executor="processes", num_slots=1, num_slots_lost=1)
    assert "1 slot on cpu (of 2: 1 lost; processes are started again), 0 % used" in check_capacity(lost).text
    lost |= {"executor": "ray", "num_slots": 6, "num_slots_lost": 2}
    assert "6 slots on cpu (of 8: 2 lost), 0 % used" in check_capacity(lost).text


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
    for granted in (None, float("nan")):
        assert check_capacity({**BEHIND, "granted": granted, "num_slots": granted}).ok
