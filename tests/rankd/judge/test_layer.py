"""From measurements to alerts."""

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest

from rankd.judge import ADVICE, DEFAULT_CONFIG, DetectConfig, LayerJudge, RunJudges
from rankd.records import Alert, Measurement


def measured(
    step: int | None,
    effective_rank: float | None = 100.0,
    *,
    run: str = "r",
    layer: str = "h.0",
    shape: tuple[int, ...] = (8, 8),
    role: str = "weight",
    finite: bool = True,
    zero: bool = False,
) -> Measurement:
    metrics = {"effective_rank": effective_rank, "stable_rank": 10.0, "spectral_norm": 1.0}
    if not finite or zero:
        metrics = dict.fromkeys(metrics, None if not finite else 0.0)
    return Measurement(run, layer, step, shape, finite, zero, metrics, role)


def bad(step: int, **options: object) -> Measurement:
    return measured(step, finite=False, **options)  # type: ignore[arg-type]


def judge_all(judges: RunJudges, measurements: Iterable[Measurement]) -> list[Alert]:
    return [alert for measurement in measurements for alert in judges.update(measurement)]


def collapse(low: float = 85.0, **options: object) -> list[Measurement]:
    """From step 1000 on; fires at 1203 (see test_log_time)."""
    values = [100.0] * 200 + [low] * 5
    return [measured(step, value, **options) for step, value in enumerate(values, 1000)]  # type: ignore[arg-type]


def summary(alerts: Iterable[Alert]) -> list[tuple[str, str, int | None]]:
    return [(alert.rule, alert.state, alert.step) for alert in alerts]


def test_an_alert_says_what_was_seen_where() -> None:
    judges = RunJudges()
    (alert,) = judge_all(judges, collapse())
    assert summary([alert]) == [("effective_rank_drop", "firing", 1203)]
    assert (alert.run, alert.layer, alert.severity, alert.metric) == ("r", "h.0", "warning", "effective_rank")
    assert alert.message == "h.0: effective_rank fell 15 % (100 → 85), compared with step 1145"
    assert alert.advice == ADVICE["effective_rank_drop"]
    assert (alert.value, alert.baseline) == (pytest.approx(85.0), pytest.approx(100.0))
    assert judges.firing() == judges.firing("r") == [alert]
    assert judges.firing("other") == []


def test_an_alert_keeps_its_id_and_the_same_history_gives_the_same_ids() -> None:
    history = [*collapse(), *(measured(step, 100.0) for step in range(1205, 1300)), bad(1301), measured(1302)]
    first, second = judge_all(RunJudges(), history), judge_all(RunJudges(), history)
    assert first == second
    assert [alert.state for alert in first] == ["firing", "resolved", "firing", "resolved"]
    assert first[0].alert_id == first[1].alert_id != first[2].alert_id == first[3].alert_id
    assert all(len(alert.alert_id) == 16 and int(alert.alert_id, 16) >= 0 for alert in first)


def test_ids_do_not_depend_on_other_rules_and_differ_by_layer_role_run_and_occurrence() -> None:
    def ids(config: DetectConfig = DEFAULT_CONFIG, **options: object) -> str:
        (alert,) = judge_all(RunJudges(config), collapse(**options))  # type: ignore[arg-type]
        return alert.alert_id

    assert ids() == ids(DetectConfig(ema="off"))
    assert len({ids(), ids(run="s"), ids(layer="h.1"), ids(role="feature", low=60.0), ids(shape=(8, 2, 4))}) == 5
    judges = RunJudges()
    again = judge_all(judges, [bad(5), measured(5), bad(5), measured(6)])
    assert len({alert.alert_id for alert in again}) == 2


def test_layers_and_runs_do_not_touch_one_another() -> None:
    judges = RunJudges()
    mixed = [
        measurement
        for hurt in collapse()
        for measurement in (hurt, measured(hurt.step, layer="h.1"), measured(hurt.step, run="s"))
    ]
    (alert,) = judge_all(judges, mixed)
    assert (alert.run, alert.layer) == ("r", "h.0")
    judges.forget("s")
    assert judges.firing() == [alert]
    judges.forget("r")
    judges.forget("never seen")
    assert judges.firing() == []


def test_features_are_judged_and_named() -> None:
    assert judge_all(RunJudges(), collapse(role="feature")) == []  # no more than healthy ones do
    (alert,) = judge_all(RunJudges(), collapse(60.0, role="feature"))
    assert alert.message.startswith("h.0 (feature): effective_rank fell")
    assert (alert.role, alert.to_json()["role"], "stop-gradient" in alert.advice) == ("feature", "feature", True)
    (weight,) = judge_all(RunJudges(), collapse())
    assert "role" not in weight.to_json() and weight.alert_id != alert.alert_id


@pytest.mark.parametrize("role", ["gradient", "update"])
def test_the_metrics_of_gradients_and_updates_are_no_alarm_unless_they_are_to_be(role: str) -> None:
    assert judge_all(RunJudges(), collapse(role=role)) == []
    judged = DetectConfig(judged_roles=["weight", role])  # type: ignore[arg-type]
    assert [alert.rule for alert in judge_all(RunJudges(judged), collapse(role=role))] == ["effective_rank_drop"]


@pytest.mark.parametrize(
    ("role", "severities", "words"),
    [
        ("weight", ("critical", "critical"), ("the weights hold NaN or infinite values", "the weights are all zero")),
        ("feature", ("critical", "warning"), ("the features hold NaN or infinite values", "the features are all zero")),
        ("gradient", ("warning", "info"), ("the gradient holds NaN or infinite values", "the gradient is all zero")),
        ("update", ("warning", "info"), ("the update holds NaN or infinite values", "the update is all zero")),
    ],
)
def test_what_is_bad_is_told_of_every_role_in_its_words(
    role: str, severities: tuple[str, str], words: tuple[str, str]
) -> None:
    rows = [measured(5, finite=False, role=role), measured(6, role=role), measured(7, zero=True, role=role)]
    nonfinite, over, zero = judge_all(RunJudges(), rows)
    assert (nonfinite.severity, zero.severity) == severities and over.state == "resolved"
    label = "h.0" if role == "weight" else f"h.0 ({role})"
    assert (nonfinite.message, zero.message) == (f"{label}: {words[0]}", f"{label}: {words[1]}")
    quiet = RunJudges(DetectConfig(nonfinite="off", zero="off"))
    assert judge_all(quiet, rows) == []


def test_a_layers_weights_and_features_of_one_name_do_not_touch_one_another() -> None:
    judges = RunJudges()
    mixed = [row for hurt in collapse(60.0, role="feature") for row in (hurt, measured(hurt.step))]
    (alert,) = judge_all(judges, mixed)
    assert alert.role == "feature"
    restored = LayerJudge.restored("r", "h.0", "feature", judges.state("r", "h.0", "feature"))
    assert restored.firing == [alert]


def test_a_reported_row_without_a_shape_is_judged_and_is_no_other_matrix() -> None:
    rows = [replace(row, shape=(0, 0), method="reported") for row in collapse()]
    (alert,) = judge_all(RunJudges(), rows)
    assert alert.rule == "effective_rank_drop"
    judges = RunJudges()
    assert judge_all(judges, [measured(1), replace(measured(2), shape=(0, 0), method="reported"), measured(3)]) == []


@pytest.mark.parametrize(("rule", "options"), [("nonfinite", {"finite": False}), ("zero", {"zero": True})])
def test_a_bad_layer_is_one_critical_alert_until_a_good_measurement(rule: str, options: dict[str, bool]) -> None:
    judges = RunJudges()
    assert summary(judges.update(measured(10, **options))) == [(rule, "firing", 10)]
    (alert,) = judges.firing()
    assert (alert.severity, alert.metric, alert.value, alert.baseline) == ("critical", None, None, None)
    assert judges.update(measured(11, **options)) == []
    (resolved,) = judges.update(measured(12))
    assert (resolved.rule, resolved.state, resolved.alert_id) == (rule, "resolved", alert.alert_id)
    assert judges.firing() == []


def test_bad_measurements_are_no_readings_for_the_detectors() -> None:
    with_bad = [each for good in collapse() for each in (bad(good.step or 0), measured(good.step, zero=True), good)]
    alerts = [alert for alert in judge_all(RunJudges(), with_bad) if alert.rule == "effective_rank_drop"]
    assert alerts == judge_all(RunJudges(), collapse())


def test_a_bad_measurement_may_overtake_good_ones() -> None:
    judges = RunJudges()
    history = [measured(10), bad(14), measured(11), measured(13), measured(14)]
    assert summary(judge_all(judges, history)) == [("nonfinite", "firing", 14), ("nonfinite", "resolved", 14)]


def test_a_bad_measurement_of_an_earlier_step_is_no_going_back() -> None:
    judges = RunJudges()
    history = [measured(10), bad(4), measured(11)]
    assert summary(judge_all(judges, history)) == [("nonfinite", "firing", 4), ("nonfinite", "resolved", 11)]


def test_going_back_ends_what_was_seen_after_and_says_so_once() -> None:
    judges = RunJudges()
    alerts = judge_all(judges, [*collapse(), bad(1205), *(measured(step) for step in range(1100, 1300))])
    assert summary(alerts) == [
        ("effective_rank_drop", "firing", 1203),
        ("nonfinite", "firing", 1205),
        ("nonfinite", "resolved", 1100),
        ("effective_rank_drop", "rebased", 1100),
        ("baseline_reset", "rebased", 1100),
    ]
    reset = alerts[-1]
    assert (reset.severity, reset.message) == ("info", "h.0: the run went back from step 1204 to step 1100")
    assert judges.firing() == []


def test_going_back_keeps_an_alert_from_before() -> None:
    judges = RunJudges()
    alerts = judge_all(judges, [*collapse(), measured(1205, 85.0), measured(1204, 85.0)])
    assert summary(alerts[1:]) == [("baseline_reset", "rebased", 1204)]
    assert judges.firing() == alerts[:1]


def test_a_repeat_counts_once() -> None:
    twice = [each for good in collapse() for each in (good, measured(good.step, 1.0))]
    assert judge_all(RunJudges(), twice) == judge_all(RunJudges(), collapse())


def test_a_new_shape_ends_the_alerts_of_the_old_and_starts_anew() -> None:
    judges = RunJudges()
    (firing,) = judge_all(judges, collapse())
    alerts = judges.update(measured(1205, 85.0, shape=(8, 16)))
    assert summary(alerts) == [("effective_rank_drop", "rebased", 1205), ("baseline_reset", "rebased", 1205)]
    assert alerts[0].alert_id == firing.alert_id
    assert alerts[0].severity == alerts[1].severity == "info"
    assert alerts[1].message == "h.0: the layer changed shape from 8 × 8 to 8 × 16"
    assert judges.firing() == []
    back = judges.update(measured(1206, shape=(8, 8)))
    assert summary(back) == [("baseline_reset", "rebased", 1206)]
    assert judge_all(judges, collapse(shape=(8, 8)))[-1].rule == "effective_rank_drop"


def test_ids_stay_unique_when_a_shape_comes_back() -> None:
    judges = RunJudges()
    ids = []
    for shape in [(8, 8), (4, 4), (8, 8)]:
        judges.update(measured(7, shape=shape))
        ids += [alert.alert_id for alert in judges.update(bad(7, shape=shape))]
    assert len(set(ids)) == 3


def test_a_bad_measurement_of_another_shape_changes_no_baseline() -> None:
    judges = RunJudges()
    history = [*collapse()[:-1], bad(1204, shape=(8, 16)), collapse()[-1]]
    assert ("baseline_reset", "rebased", 1204) not in summary(judge_all(judges, history))
    assert [alert.rule for alert in judges.firing()] == ["effective_rank_drop"]


def test_measurements_without_step_elements_or_value_say_nothing() -> None:
    judges = RunJudges()
    assert judges.update(measured(None, finite=False)) == []
    assert judge_all(judges, [measured(step, shape=(0, 8), zero=True) for step in range(5)]) == []
    assert judge_all(judges, [measured(step, None) for step in range(400)]) == []
    nothing = Measurement("r", "h.2", 3, (8, 8), True, False, {})
    assert judges.update(nothing) == []


@pytest.mark.parametrize(("ema", "severity"), [("info", "info"), ("warning", "warning"), ("critical", "critical")])
def test_severity_of_the_ema_is_configured(ema: str, severity: str) -> None:
    def falling(step: int) -> Measurement:
        return Measurement("r", "h", step, (8, 8), True, False, {"stable_rank": 10.0 if step < 100 else 1.0})

    config = DetectConfig(ema=ema)  # type: ignore[arg-type]
    (alert,) = judge_all(RunJudges(config), map(falling, range(200)))
    assert (alert.rule, alert.severity, alert.metric) == ("ema_drop", severity, "stable_rank")
    assert judge_all(RunJudges(DetectConfig(ema="off")), map(falling, range(200))) == []


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"ema": "loud"}, "ema is 'loud'; expected one of info, warning, critical, off"),
        ({"ema_alpha": 2.0}, r"ema_alpha.*2\.0; expected"),
        ({"ema_threshold": math.nan}, "ema_threshold.*nan; expected"),
        ({"ema_window": 0}, "ema_window.*0; expected"),
    ],
)
def test_wrong_configuration_is_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        DetectConfig(**arguments)  # type: ignore[arg-type]


def test_every_rule_has_advice_that_claims_no_failure() -> None:
    judge = LayerJudge("r", "h.0")
    alerts = [*judge.update(bad(0)), *judge.update(measured(1, zero=True))]
    assert {alert.advice for alert in alerts} == {ADVICE["nonfinite"], ADVICE["zero"]}
    assert not any("failing" in text for text in ADVICE.values())
