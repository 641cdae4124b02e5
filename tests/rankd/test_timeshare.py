from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.timeshare import Fair, TimeShare


def test_who_has_had_least_is_next_and_the_others_follow() -> None:
    share = TimeShare()
    names = ["a", "b", "c"]
    for name in names:
        share.begin(name)
    assert list(share.in_turn(names, {})) == names
    share.serve("a", 2.0)
    share.serve("b", 1.0)
    assert list(share.in_turn(names, {})) == ["c", "b", "a"]
    assert list(share.in_turn(names, {"c": 5.0})) == ["b", "a", "c"]
    share.correct("a", -1.5)
    assert list(share.in_turn(names, {"c": 5.0})) == ["a", "b", "c"]


def test_nobody_saves_up_and_nobody_is_forgiven() -> None:
    share = TimeShare()
    for name in ("busy", "greedy"):
        share.begin(name)
    share.serve("greedy", 100.0)
    for _ in range(10):
        share.serve("busy", 1.0)
    share.begin("new")
    share.begin("greedy")
    assert list(share.in_turn(["greedy", "new", "busy"], {})) == ["new", "busy", "greedy"]
    share.serve("new", 1.5)
    assert next(share.in_turn(["greedy", "new", "busy"], {})) == "busy", "the new one had no 9 s in store"


@given(
    st.dictionaries(st.sampled_from(["x", "y", "@n/x", "@n/y", "@m/x"]), st.floats(0.01, 30.0), min_size=1),
    st.integers(1, 300),
)
def test_time_is_shared_by_namespace_and_then_by_run_whatever_a_turn_takes(
    seconds: dict[str, float], num_turns: int
) -> None:
    """All wait always; no two of one kind are apart by more than the longest turn."""
    fair, waiting = Fair(), dict[str, list[str]]()
    for run in seconds:
        namespace = run[1:].partition("/")[0] if run.startswith("@") else ""
        fair.begin(run, waiting)
        waiting.setdefault(namespace, []).append(run)
    had, of_namespaces = Counter[str](), dict.fromkeys(waiting, 0.0)
    for _ in range(num_turns):
        run = next(fair.in_turn(waiting, {}))
        fair.serve(run, 0.01)
        fair.correct(run, seconds[run] - 0.01)
        had[run] += seconds[run]  # type: ignore[assignment]
        of_namespaces[next(name for name, runs in waiting.items() if run in runs)] += seconds[run]
    longest = max(seconds.values()) + 1e-6
    assert max(of_namespaces.values()) - min(of_namespaces.values()) <= longest
    for runs in waiting.values():
        assert max(had[run] for run in runs) - min(had[run] for run in runs) <= longest


def test_what_is_forgotten_is_gone() -> None:
    fair = Fair()
    for run in ("@n/x", "@n/y"):
        fair.begin(run, {})
    fair.forget("@n/x")
    assert list(fair.in_turn({"n": ["@n/y"]}, {})) == ["@n/y"]
    fair.forget("@n/y")
    with pytest.raises(KeyError):
        list(fair.in_turn({"n": ["@n/y"]}, {}))
