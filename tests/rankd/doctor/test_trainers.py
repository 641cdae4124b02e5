"""A line a run: what pushing costs, what is seen of the model, and what is wrong."""

from typing import Any

import pytest

from rankd.doctor.trainers import check_trainers
from rankd.trainers import Stats, Trainers

GOOD: dict[str, Any] = {
    **{"run": "lm", "world_size": 8, "num_here": 8, "num_gone": 0, "step": 1200, "steps_apart": 2, "paths": ["memfd"]},
    **{"share": 0.004, "max_overhead": 0.005, "every_steps": 8, "num_layers": 48, "oldest_steps": 16, "num_never": 0},
    **{"num_dropped": 0, "num_replaced": 3},
}


def test_a_run_that_is_well_is_one_line() -> None:
    (finding,) = check_trainers([GOOD])
    assert finding.ok and finding.check == "trainers"
    assert finding.text == (
        "run lm: 8 connected of 8, step 1200, a push at most every 8 steps, cost 0.40 % of the time of at most 0.5 %, "
        "48 layers, the stalest 16 steps old, 3 replaced before they were sent, by memfd"
    )


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"num_never": 3}, "3 layers were never pushed"),
        ({"share": 0.02}, "costs more than it may"),
        ({"steps_apart": 5000}, "5000 steps apart"),
    ],
)
def test_what_is_wrong_is_a_problem_with_advice(wrong: dict[str, Any], words: str) -> None:
    (finding,) = check_trainers([{**GOOD, **wrong}])
    assert not finding.ok and words in finding.text and finding.advice


SPARSE = {"push_seconds": 0.0004, "step_seconds": 0.01, "elapsed_seconds": 300.0, "share": 0.0203}


def test_the_cost_of_now_counts_where_a_plan_has_mended_what_it_was_before() -> None:
    (finding,) = check_trainers([{**GOOD, **SPARSE}])
    assert finding.ok and "cost 2.03 % of the time, now 0.50 % of at most 0.5 %, 48 layers" in finding.text
    (finding,) = check_trainers([{**GOOD, **SPARSE, "max_overhead": None}])
    assert "cost 2.03 % of the time, now 0.50 %, 48 layers" in finding.text, "one comma where there is no bound"
    (finding,) = check_trainers([{**GOOD, **SPARSE, "every_steps": 2, "plan_every_steps": 8}])
    assert finding.ok, "the plan is on its way"
    (finding,) = check_trainers([{**GOOD, **SPARSE, "every_steps": 2}])
    assert not finding.ok and "costs more than it may" in finding.text
    (finding,) = check_trainers([{**GOOD, **SPARSE, "every_steps": 2, "elapsed_seconds": 6.0}])
    assert finding.ok, "what the first pushes took is not spread yet"


def test_one_that_is_alone_leaves_out_more_than_its_interval_says() -> None:
    (finding,) = check_trainers([{**GOOD, **SPARSE, "world_size": 1, "num_here": 1, "every_steps": 1, "share": 0.004}])
    assert finding.ok and "a push at most every step, cost 0.40 % of the time of at most" in finding.text


def test_a_process_that_has_nothing_to_send_is_not_missed() -> None:
    (finding,) = check_trainers([{**GOOD, "world_size": 2, "num_here": 1}])
    assert finding.ok and "1 connected of 2 (only those with something to send connect), step" in finding.text
    (finding,) = check_trainers([{**GOOD, "num_here": 6, "num_gone": 2}])
    assert "6 connected of 8, 2 gone without saying bye" in finding.text


def test_what_a_trainer_without_stats_leaves_out() -> None:
    trainers = Trainers()
    trainers.greeted(b"s" * 16, "old", 0, 1, 0.0)
    (finding,) = check_trainers(trainers.summary())
    assert finding.ok and finding.text == "run old: 1 connected of 1, step None"


def test_a_summary_of_the_daemon_is_what_is_read_here() -> None:
    trainers = Trainers()
    trainers.greeted(b"s" * 16, "lm", 0, 1, 0.0)
    trainers.told(b"s" * 16, Stats(step=5, share=0.5, max_overhead=0.1, num_layers=2, oldest_steps=1), 0.0)
    (finding,) = check_trainers(trainers.summary())
    assert not finding.ok and "cost 50.00 % of the time of at most 10 %, 2 layers" in finding.text


@pytest.mark.parametrize("rows", [[], None, "x", [3], {"run": 1}])
def test_nobody_and_nonsense(rows: Any) -> None:
    assert [finding.ok for finding in check_trainers(rows)] == [True]
