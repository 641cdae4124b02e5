"""The contract of every entry of DETECTORS. A new rule is tested here just by being in the table."""

import json
import math
from collections.abc import Iterable
from copy import deepcopy

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.detectors import DEFAULT_CONFIG, DETECTORS, Detector, Precision, make_detectors
from rankd.detectors.precision import NOT_READ
from rankd.records import Verdict

pytestmark = pytest.mark.parametrize("rule", sorted(DETECTORS))

# A long warm-up, a collapse to a twentieth and a growth by 20, each long enough for any rule to see and to settle.
UNREST = [10.0] * 150 + [0.5] * 150 + [10.0] * 150 + [200.0] * 150 + [10.0] * 150


def make(rule: str) -> Detector:
    return make_detectors(DEFAULT_CONFIG)[rule]


def feed(detector: Detector, values: Iterable[float | None], start: int = 1000) -> list[tuple[int, Verdict]]:
    """Readings at start, start + 3, …; the verdicts with their steps."""
    steps = ((start + 3 * index, value) for index, value in enumerate(values))
    return [(step, verdict) for step, value in steps if (verdict := detector.update(value, step)) is not None]


def test_is_called_what_the_table_calls_it_and_sees_something(rule: str) -> None:
    verdicts = feed(make(rule), UNREST)
    assert verdicts
    assert {verdict.rule for _, verdict in verdicts} == {rule}
    assert {verdict.metric for _, verdict in verdicts} == {make(rule).metric}
    assert verdicts[0][1].state == "firing"


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_a_value_that_is_none_or_not_finite_changes_nothing(rule: str, value: float | None) -> None:
    detector = make(rule)
    for index, reading in enumerate(UNREST):
        detector.update(reading, 2 * index)
        before = detector.state()
        assert detector.update(value, 2 * index + 1) is None
        assert detector.state() == before


def test_only_bad_values_ever(rule: str) -> None:
    assert feed(make(rule), [math.nan, None, math.inf] * 200) == []


@pytest.mark.parametrize("value", [1e-300, 0.5, 1.0, 37.5, 1.7e308])
def test_a_constant_is_no_news(rule: str, value: float) -> None:
    assert feed(make(rule), [value] * 500) == []


@given(
    errors=st.lists(st.floats(-0.3, 0.3), min_size=4, max_size=4),
    order=st.lists(st.tuples(st.integers(0, 4), st.integers(1, 60)), max_size=12),
)
def test_a_constant_read_with_other_errors_is_no_news(
    rule: str, errors: list[float], order: list[tuple[int, int]]
) -> None:
    detector, step = make(rule), 1000
    for kind, number in order:
        for _ in range(number):
            value = 10.0 if kind == 4 else 10.0 * (1 + errors[kind])
            precision = None if kind == 4 else Precision(str(kind), min(value, 10.0), max(value, 10.0))
            assert detector.update(value, step, precision) is None
            assert detector.update(None, step, NOT_READ) is None
            step += 1 + number
    again = make(rule)
    again.restore(msgpack.unpackb(msgpack.packb(detector.state())))
    assert again.state() == detector.state()
    detector.rewind(1000)
    assert detector.state() == make(rule).state()


def test_one_sample_is_no_news(rule: str) -> None:
    for value in (0.0, 1e-300, 1.0, 1e300):
        assert feed(make(rule), [value]) == []


def test_zeros_raise_nothing_that_is_not_finite(rule: str) -> None:
    detector = make(rule)
    for _, verdict in feed(detector, [0.0] * 200 + UNREST + [0.0] * 200):
        assert verdict.value is not None and math.isfinite(verdict.value)
        assert verdict.baseline is not None and math.isfinite(verdict.baseline)


@given(values=st.lists(st.sampled_from([1e-300, 1.0, 9.0, 10.0, 1.7e308]), max_size=300))
def test_verdicts_alternate_between_firing_and_its_end(rule: str, values: list[float]) -> None:
    detector = make(rule)
    firing = False
    for _, verdict in feed(detector, [10.0] * 100 + [each for value in values for each in [value] * 4]):
        assert (verdict.state == "firing") != firing
        firing = verdict.state == "firing"
        json.dumps([verdict.value, verdict.baseline], allow_nan=False)
        assert verdict.detail and "\n" not in verdict.detail


@pytest.mark.parametrize("cut", [0, 1, 3, 120, 153, 170, 240, 302, 465, 610])
def test_state_round_trip(rule: str, cut: int) -> None:
    original = make(rule)
    feed(original, UNREST[:cut])
    state = msgpack.unpackb(msgpack.packb(original.state()))
    rest, start = UNREST[cut:], 1000 + 3 * cut
    expected = feed(original, rest, start)
    restored = make(rule)
    restored.restore(state)
    assert restored.state() == state
    assert feed(restored, rest, start) == expected
    assert restored.state() == original.state()


@pytest.mark.parametrize("cut", [0, 1, 120, 153, 170, 465])
def test_what_is_adopted_does_not_fire(rule: str, cut: int) -> None:
    original, adopting = make(rule), make(rule)
    feed(original, UNREST[:cut])
    adopting.adopt(original.state())
    assert adopting.rewind(1000 + 3 * cut) is None
    states = [verdict.state for _, verdict in feed(adopting, [*UNREST[cut:], 0.5, *UNREST], 1000 + 3 * cut)]
    assert states[:1] in ([], ["firing"]), "nothing that it did not raise itself ends"


def test_restoring_shares_nothing_with_the_state(rule: str) -> None:
    detector = make(rule)
    feed(detector, UNREST[:160])
    state = detector.state()
    copy = deepcopy(state)
    other = make(rule)
    other.restore(state)
    feed(other, UNREST[160:], 1000 + 3 * 160)
    assert state == copy


def test_rewinding_to_the_start_starts_anew(rule: str) -> None:
    expected = feed(make(rule), UNREST)
    for length in (0, 1, 120, 160, 300, 465, len(UNREST)):
        detector = make(rule)
        before = feed(detector, UNREST[:length])
        was_firing = bool(before) and before[-1][1].state == "firing"
        ended = detector.rewind(1000)
        assert (ended is not None) == was_firing
        if ended is not None:
            assert (ended.state, ended.severity) == ("rebased", "info")
        assert detector.state() == make(rule).state()
        assert feed(detector, UNREST) == expected


def test_rewinding_a_fresh_detector_is_nothing(rule: str) -> None:
    detector = make(rule)
    assert detector.rewind(10) is None
    assert detector.state() == make(rule).state()
