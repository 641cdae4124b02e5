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
        "run lm: 8 connected of 8, step 1200, a push every 8 steps, cost 0.40 % of the time of at most 0.5 %, "
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
