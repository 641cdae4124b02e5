"""Layers that come back: from a recorded state and the measurements after it, under the same settings or others."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from measured_as import SETTINGS, read_as

from rankd.detectors import DETECTORS
from rankd.judge import STATE_EVERY, DetectConfig, RunJudges, recall_judge
from rankd.records import Alert, Measurement

KEY = ("r", "h.0", "weight")
RESTLESS = DetectConfig(ema="warning", ema_alpha=0.5, ema_window=4, off_readings=4)
"""Settings under which even a short history raises and ends alerts of every rule."""


def measured(step: int | None, value: float | None = 100.0, **changes: Any) -> Measurement:
    metrics = {
        "effective_rank": value,
        "stable_rank": value if value is None else value / 10,
        "spectral_norm": None if value is None else 1e4 / value if value > 0 else 1.0,
    }
    return replace(Measurement("r", "h.0", step, (8, 8), True, False, metrics, time=1e9 + (step or 0)), **changes)


class Recorded:
    """What a history holds: a state (or none), the measurements after it, and those before."""

    def __init__(self, state: bytes | None, after: Iterable[Measurement], before: Iterable[Measurement] = ()) -> None:
        self.state = state
        self.after = list(after)
        self.before = list(before)
        self.calls: list[tuple[str, str, str, bool]] = []

    def __call__(
        self, run: str, layer: str, role: str, *, whole: bool = False
    ) -> tuple[bytes | None, list[Measurement]]:
        self.calls.append((run, layer, role, whole))
        return (None, self.before + self.after) if whole else (self.state, self.after)


def come_back(recorded: Recorded, config: DetectConfig = DetectConfig()) -> RunJudges:  # noqa: B008 frozen
    """Judges under `config` after a stop, of which the layer's is recalled."""
    judges = RunJudges(config)
    judges.take(recall_judge(*KEY, config, recorded))
    return judges


def judge_all(judges: RunJudges, measurements: Iterable[Measurement]) -> list[list[Alert]]:
    return [judges.update(measurement) for measurement in measurements]


def collapse(first: int = 1000) -> list[Measurement]:
    """Fires at its 204th measurement."""
    values = [100.0] * 200 + [85.0] * 5
    return [measured(step, value) for step, value in enumerate(values, first)]


@st.composite
def histories(draw: st.DrawFn) -> list[Measurement]:
    """Stretches of steady readings, between which the run jumps, goes back, repeats itself, changes shape, its tier and
    wire dtype, is judged in parts, loses experts or breaks."""
    history: list[Measurement] = []
    step, shape = 100, (8, 8)
    for _ in range(draw(st.integers(1, 8))):
        step = max(0, step + draw(st.sampled_from([1, 1, 5, 60, 0, -1, -3, -20, -1000])))
        shape = draw(st.sampled_from([shape, shape, shape, (8, 8), (4, 4, 2), (0, 3)]))
        value = draw(st.sampled_from([100.0, 99.0, 94.0, 80.0, 30.0, None, math.nan, math.inf, 0.5]))
        kind = draw(st.sampled_from(["good", "good", "good", "good", "nonfinite", "zero", "no step"]))
        gap = draw(st.sampled_from([1, 1, 3, 40]))
        setting = draw(st.sampled_from([None, None, None, None, *SETTINGS]))
        extra = draw(st.sampled_from([{}, {}, {}, {"parts": ["h.0:q"]}, {"num_zero_parts": 3}]))
        for _ in range(draw(st.integers(1, 12 if kind == "good" else 3))):
            changes: dict[str, Any] = {"shape": shape, "finite": kind != "nonfinite", "zero": kind == "zero"}
            plain = measured(None if kind == "no step" else step, value, extra=dict(extra), **changes)
            history.append(read_as(plain, setting, seed=1) if setting else plain)
            step += gap
    return history


@settings(max_examples=300, deadline=None)
@given(history=histories(), data=st.data())
def test_a_layer_goes_on_bit_for_bit_from_any_state_and_what_came_after(
    history: list[Measurement], data: st.DataObject
) -> None:
    stop = data.draw(st.integers(0, len(history) - 1), "stopped before")
    recorded = data.draw(st.integers(0, stop), "measurements that the state knows")
    never_stopped = RunJudges(RESTLESS)
    alerts = judge_all(never_stopped, history[:recorded])
    state = never_stopped.state(*KEY) if recorded else None
    alerts += judge_all(never_stopped, history[recorded:])
    again = come_back(Recorded(state, history[recorded:stop]), RESTLESS)
    assert judge_all(again, history[stop:]) == alerts[stop:]
    assert again.firing() == never_stopped.firing()
    assert again.state(*KEY) == never_stopped.state(*KEY)


@settings(max_examples=50, deadline=None)
@given(history=histories(), data=st.data())
def test_bytes_of_no_or_another_state_mean_judging_anew_from_all_measurements(
    history: list[Measurement], data: st.DataObject
) -> None:
    never_stopped = RunJudges(RESTLESS)
    alerts = judge_all(never_stopped, history)
    good = never_stopped.state(*KEY)
    place = data.draw(st.integers(0, len(good) - 1))
    damaged = data.draw(
        st.one_of(st.binary(max_size=40), st.just(good[:place]), st.just(b"\xff" + good[1:])), "damaged"
    )
    recall = Recorded(damaged, history[-1:], before=history[:-1])
    again = come_back(recall, RESTLESS)
    bad = measured(10**6, finite=False)
    assert again.update(bad) == never_stopped.update(bad)
    assert recall.calls == [(*KEY, False), (*KEY, True)]
    assert alerts is not None and again.state(*KEY) == never_stopped.state(*KEY)
    assert again.due(*KEY) is not None, "so that it is not done twice"


def test_restless_settings_show_every_rule() -> None:
    """That the tests above are about something."""
    quiet, low = [measured(step) for step in range(100, 130)], [measured(step, 30.0) for step in range(130, 150)]
    bad = [measured(150, finite=False), measured(151, zero=True)]
    alerts = judge_all(RunJudges(RESTLESS), [*quiet, *low, *bad, measured(120)])
    rules = {alert.rule for found in alerts for alert in found}
    assert rules == {*DETECTORS, "nonfinite", "zero", "baseline_reset"}


def test_an_alert_has_the_time_of_its_measurement() -> None:
    ((alert,),) = judge_all(RunJudges(), [measured(7, finite=False)])
    assert alert.time == 1e9 + 7
    ((alert,),) = judge_all(RunJudges(), [measured(7, finite=False, time=None)])
    assert alert.time == 0.0


def test_a_state_is_due_with_the_first_measurement_and_every_64th_after_it() -> None:
    judges = RunJudges()
    due = []
    for number, measurement in enumerate(collapse(), 1):
        judges.update(measurement)
        if (state := judges.due(*KEY)) is not None:
            assert state == judges.state(*KEY)
            due.append(number)
    assert due == [1, 1 + STATE_EVERY, 1 + 2 * STATE_EVERY, 1 + 3 * STATE_EVERY]


def test_after_a_stop_states_are_due_where_they_would_have_been() -> None:
    history = collapse()
    judges = RunJudges()
    judge_all(judges, history[:1])
    again = come_back(Recorded(judges.state(*KEY), history[1:30]))
    due = []
    for number, measurement in enumerate(history[30:], 31):
        again.update(measurement)
        if again.due(*KEY) is not None:
            due.append(number)
    assert due[0] == 1 + STATE_EVERY


def test_a_forgotten_run_comes_back() -> None:
    history = collapse()
    judges = RunJudges()
    expected = [alert for alerts in judge_all(judges, history[:100]) for alert in alerts]
    recorded = Recorded(judges.state(*KEY), [])
    judges.forget("r")
    judges.forget("unknown")
    assert judges.firing() == [] and not judges.knows(*KEY)
    judges.take(recall_judge(*KEY, DetectConfig(), recorded))
    expected += [alert for alerts in judge_all(judges, history[100:]) for alert in alerts]
    assert expected == [alert for alerts in judge_all(RunJudges(), history) for alert in alerts]
    assert len(expected) == 1


def test_a_judge_that_is_recalled_too_late_changes_nothing() -> None:
    """Two measurements of a layer that were under way at once: the second finds what the first brought back."""
    history = collapse()
    judges = come_back(Recorded(None, history[:-2]))
    late = recall_judge(*KEY, DetectConfig(), Recorded(None, []))
    assert judges.knows(*KEY) and not judges.knows("r", "h.0", "gradient")
    judges.take(late)
    assert [alert.rule for alert in judges.update(history[-2])] == ["effective_rank_drop"]


def test_a_record_that_cannot_be_read_is_who_asks_to_deal_with() -> None:
    def recall(run: str, layer: str, role: str, *, whole: bool = False) -> None:
        raise OSError("busy")

    with pytest.raises(OSError, match="busy"):
        recall_judge(*KEY, DetectConfig(), recall)


def test_nothing_recorded_is_a_layer_that_begins() -> None:
    judge = recall_judge(*KEY, DetectConfig(), lambda run, layer, role, whole=False: None)
    assert judge.num_since_state == STATE_EVERY and judge.firing == []


# Other settings than those of the record


def restarted(config: DetectConfig, history: list[Measurement], former: DetectConfig) -> RunJudges:
    """Under `config` after `history` was judged under `former`, with a state of its middle."""
    before = RunJudges(former)
    judge_all(before, history[: len(history) // 2])
    return come_back(Recorded(before.state(*KEY), history[len(history) // 2 :]), config)


FIRED = collapse()


@pytest.mark.parametrize(
    "changes", [{"effective_rank_drop": "off"}, {"effective_rank_drop_scales": ((1.05, 0.3),)}, {"on_readings": 4}]
)
def test_alerts_of_rules_that_are_off_or_set_otherwise_end_once(changes: dict[str, Any]) -> None:
    config = DetectConfig(**changes)
    judges = restarted(config, FIRED, DetectConfig())
    (fired,) = (alert for alerts in judge_all(RunJudges(), FIRED) for alert in alerts)
    step = 1000 + len(FIRED)
    (ended,) = judges.update(measured(step, 85.0))
    assert (ended.alert_id, ended.state, ended.severity) == (fired.alert_id, "rebased", "info")
    assert (ended.step, ended.baseline) == (step, fired.baseline)
    assert ended.message == "h.0: the settings of this rule changed"
    state = judges.due(*KEY)
    assert state is not None, "recorded with the end, which would else be said again after the next stop"
    again = come_back(Recorded(state, []), config)
    assert again.update(measured(step + 1, 85.0)) == judges.update(measured(step + 1, 85.0))


def test_a_rule_set_otherwise_keeps_its_readings() -> None:
    config = DetectConfig(effective_rank_drop_scales=((1.05, 0.1),))
    judges = restarted(config, [measured(step) for step in range(1000, 1200)], DetectConfig())
    alerts = judge_all(judges, [measured(step, 85.0) for step in range(1200, 1210)])
    assert [(alert.rule, alert.step) for found in alerts for alert in found] == [("effective_rank_drop", 1203)]


def test_a_severity_alone_changes_no_alert_that_is_on() -> None:
    config = DetectConfig(effective_rank_drop="critical", nonfinite="warning")
    judges = restarted(config, [*FIRED, measured(1205, finite=False)], DetectConfig())
    back = [alert for alerts in judge_all(judges, map(measured, range(1206, 1260))) for alert in alerts]
    assert [(alert.rule, alert.state, alert.severity) for alert in back] == [
        ("nonfinite", "resolved", "warning"),
        ("effective_rank_drop", "resolved", "critical"),
    ]


def test_a_rule_that_is_new_starts_with_the_first_measurement_it_sees() -> None:
    former = DetectConfig(effective_rank_drop="off", zero="off")
    judges = restarted(DetectConfig(), FIRED, former)
    assert judges.update(measured(1205, 85.0)) == []
    (alert,) = judges.update(measured(1206, zero=True))
    assert alert.rule == "zero"


def test_what_is_off_says_nothing() -> None:
    off = DetectConfig(nonfinite="off", zero="off", baseline_reset="off", effective_rank_drop="off", ema="off")
    bad = [measured(1205, finite=False), measured(1206, zero=True), measured(1000), measured(1001, shape=(4, 4))]
    assert judge_all(RunJudges(off), [*FIRED, *bad]) == [[]] * (len(FIRED) + 4)
