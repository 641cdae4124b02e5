"""Weights in parts: a whole that is not judged, and a stack of experts some of which are all zero."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest

from rankd.judge import DetectConfig, LayerJudge, RunJudges
from rankd.records import Alert, Measurement


def measured(step: int, effective_rank: float = 100.0, **extra: Any) -> Measurement:
    metrics = {"effective_rank": effective_rank, "stable_rank": 10.0, "spectral_norm": 1.0}
    return Measurement("r", "h.0", step, (8, 8), True, False, metrics, extra=extra)


def whole(step: int, effective_rank: float = 100.0, **extra: Any) -> Measurement:
    return measured(step, effective_rank, parts=["h.0:q", "h.0:k", "h.0:v"], **extra)


def zero(measurement: Measurement) -> Measurement:
    return replace(measurement, zero=True, metrics=dict.fromkeys(measurement.metrics, 0.0))


def judge_all(judge: LayerJudge, measurements: Iterable[Measurement]) -> list[Alert]:
    """With a restart after each measurement."""
    alerts = []
    for measurement in measurements:
        alerts += judge.update(measurement)
        state = judge.state()
        again = LayerJudge.restored("r", "h.0", "weight", state)
        assert again.state() == state
        judge.__dict__.update(again.__dict__)
    return alerts


def summary(alerts: Iterable[Alert]) -> list[tuple[str, str, int | None]]:
    return [(alert.rule, alert.state, alert.step) for alert in alerts]


def fall(first: int = 1000) -> list[Measurement]:
    return [measured(step, 100.0 if step < first + 80 else 50.0) for step in range(first, first + 90)]


def test_a_whole_whose_parts_are_judged_is_only_looked_at() -> None:
    judge = LayerJudge("r", "h.0", config=DetectConfig(ema_window=5))
    falls = [replace(row, extra={"parts": ["h.0:q"]}) for row in fall()]
    back = [whole(step) for step in range(900, 950)]
    broken = [zero(whole(950)), whole(951), replace(whole(952), finite=False), whole(953)]
    assert summary(judge_all(judge, [*falls, *back, *broken])) == [
        ("zero", "firing", 950),
        ("zero", "resolved", 951),
        ("nonfinite", "firing", 952),
        ("nonfinite", "resolved", 953),
    ]


def test_what_was_raised_of_the_whole_before_ends_once() -> None:
    judge = LayerJudge("r", "h.0")
    (firing,) = judge_all(judge, fall())
    (ended,) = judge_all(judge, [whole(1090, 50.0), whole(1091, 50.0), whole(1091, 50.0)])
    assert (ended.alert_id, ended.state, ended.severity) == (firing.alert_id, "rebased", "info")
    assert ended.message == "h.0: its parts are judged from here on, as layers of their own"
    assert not judge.firing


def test_a_whole_that_is_judged_again_begins_anew() -> None:
    judge = LayerJudge("r", "h.0")
    judge_all(judge, [*(measured(step) for step in range(100, 120)), whole(120)])
    assert judge_all(judge, [measured(step, 50.0) for step in range(140, 160)]) == []
    assert summary(judge_all(judge, [measured(step, 25.0) for step in range(160, 180)]))[:1] == [
        ("effective_rank_drop", "firing", 163)
    ]


def test_a_stack_with_zero_experts_says_so_until_none_is() -> None:
    judge = LayerJudge("r", "h.0")
    rows = [measured(1), measured(2, num_zero_parts=3), measured(3, num_zero_parts=1), measured(4, num_zero_parts=0)]
    firing, resolved = judge_all(judge, rows)
    assert (firing.rule, firing.state, firing.step, firing.severity) == ("zero", "firing", 2, "critical")
    assert firing.message == "h.0: 3 of its experts are all zero"
    assert (resolved.state, resolved.step, resolved.alert_id) == ("resolved", 4, firing.alert_id)
    assert resolved.message == "h.0: no longer so (3 of its experts are all zero at step 2)"
    (again,) = judge_all(judge, [measured(5, num_zero_parts=1)])
    assert again.message == "h.0: 1 of its experts is all zero"
    assert again.alert_id != firing.alert_id


def test_its_metrics_are_judged_on() -> None:
    rows = [replace(row, extra={"num_zero_parts": 2}) for row in fall()]
    alerts = judge_all(LayerJudge("r", "h.0"), rows)
    assert summary(alerts) == [("zero", "firing", 1000), *summary(judge_all(LayerJudge("r", "h.0"), fall()))]


def test_from_some_zero_experts_to_all_and_back_is_one_alert() -> None:
    judge = LayerJudge("r", "h.0")
    rows = [measured(1, num_zero_parts=3), zero(measured(2)), measured(3, num_zero_parts=3), measured(4)]
    assert summary(judge_all(judge, rows)) == [("zero", "firing", 1), ("zero", "resolved", 4)]


def test_a_run_that_goes_back_to_before_ends_it() -> None:
    judge = LayerJudge("r", "h.0")
    rows = [measured(10, num_zero_parts=3), measured(4, num_zero_parts=3), measured(5)]
    assert summary(judge_all(judge, rows)) == [
        ("zero", "firing", 10),
        ("baseline_reset", "rebased", 4),
        ("zero", "resolved", 5),
    ]


def test_measurements_that_a_bad_one_overtook_do_not_end_it() -> None:
    judge = LayerJudge("r", "h.0")
    rows = [
        zero(measured(10)),
        measured(8, num_zero_parts=1),
        measured(9),
        measured(10, num_zero_parts=1),
        measured(11),
    ]
    assert summary(judge_all(judge, rows)) == [("zero", "firing", 10), ("zero", "resolved", 11)]


def test_where_zero_is_off_nothing_is_said() -> None:
    judges = RunJudges(DetectConfig(zero="off"))
    assert judges.update(measured(1, num_zero_parts=3)) == []


@pytest.mark.parametrize("wrong", [None, -1, 2.5, True, "many", [3]])
def test_what_is_no_number_of_experts_says_nothing(wrong: Any) -> None:
    assert RunJudges().update(measured(1, num_zero_parts=wrong)) == []


def test_an_expert_that_comes_back_lower_than_the_rest_is_a_fall_and_one_that_dies_is_none() -> None:
    def lowest(low_from: int, low_to: int) -> list[tuple[str, str, int | None]]:
        rows = [measured(step, 60.0 if low_from <= step < low_to else 100.0) for step in range(1000, 1140)]
        zeros = [replace(row, extra={"num_zero_parts": int(row.metrics["effective_rank"] == 100.0)}) for row in rows]
        return [each for each in summary(judge_all(LayerJudge("r", "h.0"), zeros)) if each[0] == "effective_rank_drop"]

    assert lowest(1100, 1140) == [("effective_rank_drop", "firing", 1103), ("effective_rank_drop", "rebased", 1120)]
    assert lowest(1000, 1100) == []
