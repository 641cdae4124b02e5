"""The classic detector, by hand-made numbers."""

import doctest
import math

import pytest

from rankd.detectors import ema
from rankd.detectors.ema import EmaDropDetector, RankTrendDetector


def test_example_in_its_docstring() -> None:
    assert doctest.testmod(ema).failed == 0


def test_attributes_before_during_and_after_the_warm_up() -> None:
    detector = RankTrendDetector(alpha=0.5, threshold_pct=0.2, window=3)
    assert (detector.ema, detector.initial_ema, detector.step_count) == (None, None, 0)
    assert [detector.update(value) for value in (8.0, 4.0)] == [None, None]
    assert (detector.ema, detector.initial_ema, detector.step_count) == (6.0, None, 2)
    assert detector.update(2.0) is None
    assert (detector.ema, detector.initial_ema, detector.step_count) == (4.0, 4.0, 3)


def test_warns_at_every_update_beyond_the_threshold_and_only_there() -> None:
    detector = RankTrendDetector(alpha=1.0, threshold_pct=0.2, window=1)
    assert detector.update(10.0) is None
    assert detector.update(8.0) is None  # exactly the threshold is not more than it
    warnings = [detector.update(7.9), detector.update(7.0)]
    assert warnings[0] == "WARN EMA 7.9 is 21.0 % below its baseline 10"
    assert warnings[1] is not None and warnings[1].startswith("WARN")
    assert detector.update(8.1) is None
    assert detector.initial_ema == 10.0


def test_the_whole_warm_up_is_silent() -> None:
    detector = RankTrendDetector(window=100)
    assert [detector.update(1000.0 / (index + 1)) for index in range(100)] == [None] * 100


def test_non_finite_values_are_ignored() -> None:
    detector = RankTrendDetector(alpha=0.5, window=2)
    for value in (4.0, math.nan, math.inf, -math.inf, 4.0):
        assert detector.update(value) is None
    assert (detector.ema, detector.initial_ema, detector.step_count) == (4.0, 4.0, 2)


def test_reset() -> None:
    detector = RankTrendDetector(window=1)
    detector.update(3.0)
    detector.reset()
    assert (detector.ema, detector.initial_ema, detector.step_count) == (None, None, 0)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"alpha": 0.0}, r"alpha is 0\.0; expected"),
        ({"alpha": 1.5}, r"alpha is 1\.5; expected"),
        ({"alpha": math.nan}, "alpha is nan; expected"),
        ({"threshold_pct": -0.1}, r"threshold_pct is -0\.1; expected"),
        ({"threshold_pct": 20}, "threshold_pct is 20; expected a share"),
        ({"window": 0}, "window is 0; expected"),
        ({"window": 2.5}, r"window is 2\.5; expected"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        RankTrendDetector(**arguments)  # type: ignore[arg-type]


def warmed_up() -> EmaDropDetector:
    """Baseline 10 taken at step 104; alpha 1, so that each value is the EMA."""
    detector = EmaDropDetector(alpha=1.0, threshold_pct=0.2, window=5)
    for step in range(100, 105):
        assert detector.update(10.0, step) is None
    return detector


def test_one_verdict_at_each_change_of_state() -> None:
    detector = warmed_up()
    values = [8.5, 7.0, 6.0, 8.5, 8.9, 9.0, 8.5, 7.9]
    verdicts = [detector.update(value, 105 + index) for index, value in enumerate(values)]
    states = [verdict and verdict.state for verdict in verdicts]
    assert states == [None, "firing", None, None, None, "resolved", None, "firing"]
    firing = verdicts[1]
    assert firing is not None
    assert (firing.severity, firing.value, firing.baseline) == ("info", 7.0, 10.0)
    assert firing.detail == "stable_rank EMA 7 is 30.0 % below its baseline 10"


def test_a_restart_keeps_the_baseline_so_that_a_collapse_after_it_is_seen_at_once() -> None:
    detector = warmed_up()
    detector.update(9.5, 120)
    assert detector.rewind(110) is None
    verdict = detector.update(5.0, 110)
    assert verdict is not None and verdict.state == "firing"
    assert detector.rewind(105) is None, "its alert stays on as the EMA is still low"


def test_going_back_before_the_baseline_starts_anew() -> None:
    detector = warmed_up()
    detector.update(5.0, 120)
    verdict = detector.rewind(104)
    assert verdict is not None
    assert (verdict.state, verdict.severity) == ("rebased", "info")
    assert detector.state() == EmaDropDetector().state()
