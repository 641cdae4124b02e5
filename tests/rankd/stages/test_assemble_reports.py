"""What trainers report counts as much as a snapshot: one of a layer and step, within the bounds of runs and layers."""

from typing import Any

import pytest
from chunks import A, B, assembler, chunk, ones

from rankd.stages.assemble import Assemble
from rankd_client.wire import Reported, WireError


def take(assemble: Assemble, step: int, session: bytes = A, layer: str = "w", again: bool = False, **more: Any) -> bool:
    return assemble.report("r", session, Reported(layer, step, {}, again=again, **more), 0.0).is_new


def test_each_step_is_taken_once_and_settled_for_all_who_sent_it() -> None:
    assemble = assembler()
    key = ("r", "w", "weight", 1)
    assert take(assemble, 1)
    assert not take(assemble, 1, B) and not assemble.report("r", B, Reported("w", 1, {}), 0.0).settled
    assert assemble.settle(key) == {A, B}
    assert assemble.report("r", B, Reported("w", 1, {}), 0.0).settled
    assert assemble.counters["num_repeats"] == 3


def test_what_is_sent_again_is_a_repeat_up_to_the_newest_step_and_else_a_return() -> None:
    assemble = assembler()
    assert [take(assemble, step) for step in (1, 2, 3)] == [True] * 3
    assert [take(assemble, step, again=True) for step in (1, 2, 3, 4)] == [False, False, False, True]
    assert [take(assemble, step) for step in (2, 2, 3)] == [True, False, True], "the run went back"


def test_after_a_restart_the_history_says_which_step_was_the_newest() -> None:
    assemble = assembler()
    message = Reported("w", 2, {}, again=True)
    assert assemble.asks("r", message)
    assert not assemble.report("r", A, message, 0.0, {("w", "weight"): 2}).is_new
    assert not assemble.asks("r", message)
    assert assemble.report("r", A, Reported("w", 3, {}, again=True), 0.0).is_new


def test_roles_and_snapshots_of_the_same_step() -> None:
    assemble = assembler()
    assert take(assemble, 1) and take(assemble, 1, role="gradient")
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=1), 0.0).snapshot is None, "it was reported already"
    assert assemble.add("r", A, chunk(ones(4), (2, 2), step=2), 0.0).snapshot is not None
    assert not take(assemble, 2)


def test_runs_and_layers_have_their_bounds() -> None:
    assemble = assembler(max_runs=1, max_layers_per_run=2)
    assert take(assemble, 1) and take(assemble, 1, layer="v")
    for run, code in (("r", "too_many_layers"), ("s", "too_many_runs")):
        with pytest.raises(WireError) as caught:
            assemble.report(run, A, Reported("x", 1, {}), 0.0)
        assert caught.value.code == code
    with pytest.raises(WireError):
        assemble.asks("s", Reported("x", 1, {}))
    assert take(assemble, 2)
