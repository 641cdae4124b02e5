"""The default rule on hand-made series, with the exact steps at which it must speak."""

import math
from bisect import bisect_right
from collections.abc import Iterable
from statistics import median

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rankd.detectors import DEFAULT_CONFIG, make_detectors
from rankd.detectors.log_time import LogTimeDetector, Scale
from rankd.detectors.memory import THINNED_RATIO
from rankd.records import Verdict

SCALES = (Scale(1.05, 0.06), Scale(1.15, 0.08))


def drop() -> LogTimeDetector:
    return LogTimeDetector("effective_rank_drop", "effective_rank", direction=-1, scales=SCALES)


def feed(detector: LogTimeDetector, values: Iterable[float], start: int) -> list[tuple[int, Verdict]]:
    """Readings at every step from `start` on; the verdicts with their steps."""
    return [(step, v) for step, value in enumerate(values, start) if (v := detector.update(value, step)) is not None]


def states(verdicts: Iterable[tuple[int, Verdict]]) -> list[tuple[int, str]]:
    return [(step, verdict.state) for step, verdict in verdicts]


def test_fires_at_the_third_reading_of_the_median_beyond_the_threshold() -> None:
    # Low from 1200 on: the median of three follows at 1201, so the third reading in a row is 1203.
    ((step, verdict),) = feed(drop(), [100.0] * 200 + [85.0] * 5, 1000)
    assert (step, verdict.state, verdict.severity) == (1203, "firing", "warning")
    assert verdict.value == pytest.approx(85.0)
    assert verdict.baseline == pytest.approx(100.0)
    assert verdict.detail == "effective_rank fell 15 % (100 → 85), compared with step 1145"  # 1203/1.05 = 1145.7


def test_a_single_outlier_and_two_readings_are_not_enough() -> None:
    assert feed(drop(), [100.0] * 200 + [50.0] + [100.0] * 50, 1000) == []
    assert feed(drop(), [100.0] * 200 + [85.0] * 2 + [100.0] * 50, 1000) == [], "two medians beyond it"


@pytest.mark.parametrize(
    ("log_drop", "ratio"), [(0.0599, None), (0.0601, 1.05), (0.0799, 1.05), (0.0801, 1.05)], ids=str
)
def test_thresholds_of_a_sudden_drop(log_drop: float, ratio: float | None) -> None:
    verdicts = feed(drop(), [100.0] * 200 + [100.0 * math.exp(-log_drop)] * 5, 1000)
    assert bool(verdicts) == (ratio is not None)


def test_a_slow_fall_is_seen_by_the_long_scale_and_its_reference_kept() -> None:
    # 0.6 per unit of log-time: 0.029 over log 1.05 (below 0.06), 0.0839 over log 1.15 (beyond 0.08).
    start = 2000
    values = [100.0] * 100 + [100.0 * (2100 / step) ** 0.6 for step in range(2100, 2500)]
    step, verdict = feed(drop(), values, start)[0]
    assert verdict.state == "firing"
    reference = verdict.baseline or math.nan
    assert 0.08 < math.log(reference / (verdict.value or math.nan)) < 0.084
    assert verdict.detail.endswith(f"compared with step {math.floor(step / 1.15)}")


def test_the_largest_change_gives_the_reference() -> None:
    # Falls in two steps: the long scale looks back beyond both, the short one beyond the second only.
    values = [100.0] * 200 + [96.0] * 100 + [88.0] * 5
    ((_, verdict),) = feed(drop(), values, 1000)
    assert verdict.baseline == pytest.approx(100.0)
    assert verdict.detail.endswith("compared with step 1133")  # 1303/1.15 = 1133.04


def test_not_before_five_readings_and_not_without_a_reading_to_compare_with() -> None:
    detector = drop()
    steps = [10**index for index in range(8)]
    verdicts = [detector.update(2.0**-index, step) for index, step in enumerate(steps)]
    assert [verdict is not None for verdict in verdicts] == [False] * 6 + [True, False]
    # From 1000 on, no reading is old enough before 1050 = 1000 · 1.05.
    assert states(feed(drop(), [100.0] * 10 + [50.0] * 60, 1000))[0] == (1052, "firing")


def test_resolved_after_20_readings_in_a_row_near_the_frozen_reference() -> None:
    detector = drop()
    # Back from 1210 on, the median from 1211 on: the 20th is 1230. 97.5 is within θ/2 = 0.03 of 100.
    verdicts = feed(detector, [100.0] * 200 + [85.0] * 10 + [97.5] * 100, 1000)
    assert states(verdicts) == [(1203, "firing"), (1230, "resolved")]
    resolved = verdicts[1][1]
    assert resolved.severity == "warning"
    assert (resolved.value, resolved.baseline) == (pytest.approx(97.5), pytest.approx(100.0))
    assert resolved.detail == "effective_rank came back to 97.5 (100 before it moved)"


def test_an_interrupted_return_counts_anew() -> None:
    values = [100.0] * 200 + [85.0] * 10 + [99.0] * 15 + [90.0] * 2 + [99.0] * 60
    # Back at 1211…1225; the median is low at 1226 and 1227, and back from 1228 on.
    assert states(feed(drop(), values, 1000)) == [(1203, "firing"), (1247, "resolved")]


def test_above_the_reference_is_back_too() -> None:
    assert states(feed(drop(), [100.0] * 200 + [85.0] * 10 + [150.0] * 40, 1000))[-1] == (1230, "resolved")


def test_rebased_at_a_new_level_from_which_a_further_fall_fires_again() -> None:
    # Low from 1201 to 1220 are 20 levels. The old level stays in reach of the look-back for long after, in vain.
    values = [100.0] * 200 + [85.0] * 200 + [76.0] * 5
    verdicts = feed(drop(), values, 1000)
    assert states(verdicts) == [(1203, "firing"), (1220, "rebased"), (1403, "firing")]
    rebased, again = verdicts[1][1], verdicts[2][1]
    assert rebased.severity == "info"
    assert rebased.detail == (
        "effective_rank fell 15 % (100 → 85), compared with step 1145; it settled at this new level"
    )
    assert again.baseline == pytest.approx(85.0)


def test_a_further_fall_right_after_the_rebase_is_held_against_the_new_level() -> None:
    values = [100.0] * 200 + [85.0] * 21 + [82.0] * 30 + [78.0] * 3 + [78.0] * 2
    verdicts = feed(drop(), values, 1000)
    assert states(verdicts)[1:] == [(1220, "rebased"), (1254, "firing")]
    assert verdicts[2][1].baseline == pytest.approx(85.0)
    assert verdicts[2][1].detail.endswith("compared with step 1220")


def test_a_fall_that_goes_on_is_one_alert_against_the_frozen_reference() -> None:
    # A quarter per 100 steps at step 1200: beyond the rebase band at any time.
    values = [100.0] * 200 + [100.0 * math.exp(-index / 400) for index in range(400)]
    verdicts = feed(drop(), values, 1000)
    assert [verdict.state for _, verdict in verdicts] == ["firing"]


def test_hovering_at_the_threshold_raises_once() -> None:
    hover = [100.0 * math.exp(-(0.063 if index % 14 < 7 else 0.057)) for index in range(1000)]
    verdicts = feed(drop(), [100.0] * 400 + hover, 2000)
    assert [verdict.state for _, verdict in verdicts] == ["firing", "rebased"]


def test_growth_is_the_mirror_image() -> None:
    growth = make_detectors(DEFAULT_CONFIG)["spectral_norm_growth"]
    assert isinstance(growth, LogTimeDetector)
    verdicts = feed(growth, [1.0] * 200 + [1.5] * 100, 1000)
    assert states(verdicts) == [(1203, "firing"), (1220, "rebased")]
    assert verdicts[0][1].detail == "spectral_norm grew 50 % (1 → 1.5), compared with step 1046"
    growth = make_detectors(DEFAULT_CONFIG)["spectral_norm_growth"]
    assert isinstance(growth, LogTimeDetector)
    assert feed(growth, [1.5] * 200 + [1.0] * 100, 1000) == []


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, 0.0, -1.0])
def test_values_without_a_logarithm_are_no_readings(bad: float | None) -> None:
    detector = drop()
    verdicts = []
    for step, value in enumerate([100.0] * 200 + [85.0] * 40, 1000):
        assert detector.update(bad, 2 * step - 1) is None
        verdict = detector.update(value, 2 * step)
        if verdict is not None:
            verdicts.append((step, verdict.state))
    assert verdicts == [(1203, "firing"), (1220, "rebased")]


def test_a_step_that_does_not_advance_is_a_callers_error() -> None:
    detector = drop()
    detector.update(1.0, 10)
    with pytest.raises(ValueError, match="step is 10; expected one after 10"):
        detector.update(1.0, 10)


def test_going_back_before_the_firing_ends_the_alert_and_forgets_the_fault() -> None:
    detector = drop()
    feed(detector, [100.0] * 200 + [85.0] * 5, 1000)
    verdict = detector.rewind(1203)
    assert verdict is not None
    assert (verdict.state, verdict.severity) == ("rebased", "info")
    assert verdict.value == pytest.approx(85.0), "the last level before 1203"
    assert verdict.detail == "the run went back to step 1203, before step 1203 where effective_rank had raised this"
    assert detector.rewind(1100) is None
    assert states(feed(detector, [100.0] * 100 + [85.0] * 5, 1100)) == [(1203, "firing")], "the same fault again"


def test_going_back_after_the_firing_keeps_the_alert_and_its_reference() -> None:
    detector = drop()
    # The way back had begun at 1211, and what is left of it counts.
    feed(detector, [100.0] * 200 + [85.0] * 10 + [99.0] * 15, 1000)
    assert detector.rewind(1215) is None
    verdicts = feed(detector, [99.0] * 30, 1215)
    assert states(verdicts) == [(1230, "resolved")]
    assert verdicts[0][1].baseline == pytest.approx(100.0)


def test_settling_counts_the_readings_that_are_left_after_going_back() -> None:
    detector = drop()
    feed(detector, [100.0] * 200 + [85.0] * 15, 1000)
    assert detector.rewind(1210) is None
    assert states(feed(detector, [85.0] * 30, 1210)) == [(1220, "rebased")], "low since 1201"


def test_going_back_before_a_rebase_forgets_it() -> None:
    detector = drop()
    feed(detector, [100.0] * 200 + [85.0] * 25, 1000)
    assert detector.rewind(1190) is None
    assert states(feed(detector, [100.0] * 10 + [85.0] * 5, 1190)) == [(1203, "firing")]


def test_going_back_after_a_rebase_keeps_the_new_level() -> None:
    detector = drop()
    feed(detector, [100.0] * 200 + [85.0] * 60, 1000)
    assert detector.rewind(1230) is None
    assert feed(detector, [85.0] * 100, 1230) == []


@pytest.mark.parametrize("back_to", [2500, 1900, 1000, 300])
def test_however_far_a_run_goes_back_a_fall_right_after_it_is_seen(back_to: int) -> None:
    detector = drop()
    assert feed(detector, [100.0] * 3000, 1) == []
    assert detector.rewind(back_to) is None
    assert states(feed(detector, [85.0] * 10, back_to)) == [(back_to + 3, "firing")]


def test_memory_is_bounded_and_still_reaches_back() -> None:
    detector = drop()
    assert feed(detector, [100.0] * 6000, 1) == []
    kept = np.frombuffer(detector.state()["steps"], "<i8")
    beyond = kept[kept <= 6000 / 1.5]
    # All of the last third, and of those before it one each THINNED_RATIO; an eighth may wait to be thinned.
    assert len(kept) - len(beyond) == 2000
    assert len(beyond) < 200 + math.log(4000 / 200) / math.log(THINNED_RATIO) + 6000 / 8
    assert states(feed(detector, [85.0] * 5, 6001)) == [(6004, "firing")]


@settings(max_examples=50)
@given(
    gaps=st.lists(st.sampled_from([1, 1, 1, 2, 5, 50, 1000]), min_size=120, max_size=120),
    changes=st.lists(st.sampled_from([0.0, 0.0, 0.0, 0.01, -0.01, -0.07, 0.1]), min_size=120, max_size=120),
)
def test_the_first_firing_is_where_the_definition_says(gaps: list[int], changes: list[float]) -> None:
    """Against the rule written down plainly: all readings kept, every look-up a search from the start."""
    steps, logs = [100], [0.0]
    for gap, change in zip(gaps, changes, strict=True):
        steps.append(steps[-1] + gap)
        logs.append(logs[-1] + change)
    values = [math.exp(log) for log in logs]
    logs = [math.log(value) for value in values]
    levels = [median(logs[max(0, index - 2) : index + 1]) for index in range(len(logs))]
    expected, streaks = None, dict.fromkeys(SCALES, 0)
    for index in range(4, len(logs)):
        for scale in SCALES:
            before = bisect_right(steps, steps[index] / scale.ratio) - 1
            beyond = before >= 0 and levels[before] - levels[index] > scale.threshold
            streaks[scale] = streaks[scale] + 1 if beyond else 0
        if max(streaks.values()) >= 3:
            expected = steps[index]
            break
    detector = drop()
    verdicts = [detector.update(value, step) for step, value in zip(steps, values, strict=True)]
    first = next((step for step, verdict in zip(steps, verdicts, strict=True) if verdict is not None), None)
    assert first == expected
