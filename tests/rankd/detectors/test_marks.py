"""What errors leave of a change, and which errors are remembered."""

import math
from statistics import median

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.detectors.marks import HEADROOM, MAX_MARKS, PLAIN, SLACK_LEVEL, Bars, counted, movement
from rankd.detectors.memory import Memory
from rankd.detectors.precision import MIXED, Precision

A, B = Bars("a", 0.02, 0.03), Bars("b", 0.04, 0.05)
DOWN, UP = -1, +1

bars_of = st.builds(
    Bars, st.sampled_from(["", "a", "b", MIXED]), st.floats(0, 1), st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.7])
)


def test_alike_all_of_a_change_counts_else_what_errors_cannot_explain() -> None:
    assert counted(DOWN, 0.3, A, A) == counted(DOWN, 0.3, PLAIN, PLAIN) == 0.3
    assert counted(DOWN, 0.3, A, B) == pytest.approx(0.3 - 0.02 - 0.05)
    assert counted(UP, 0.3, A, B) == pytest.approx(0.3 - 0.03 - 0.04)
    assert counted(DOWN, 0.3, PLAIN, B) == pytest.approx(0.3 - 0.05)
    mixed = A._replace(signature=MIXED)
    assert counted(DOWN, 0.3, mixed, mixed) == pytest.approx(0.3 - 0.02 - 0.03)


def test_a_correction_that_wavers_is_no_change_and_a_collapse_through_noise_is_one() -> None:
    assert counted(DOWN, 0.2, A._replace(gap=0.1), A._replace(gap=0.3)) == pytest.approx(0.0)
    # Raw from 700 to 26, corrected from 699 to 8.
    then, now = A._replace(gap=math.log(700 / 699)), A._replace(gap=math.log(26 / 8))
    assert counted(DOWN, math.log(699 / 8), then, now) == pytest.approx(math.log(700 / 26))


@given(change=st.floats(-3, 3), then=bars_of, now=bars_of, direction=st.sampled_from([DOWN, UP]))
def test_errors_never_add_to_a_change(change: float, then: Bars, now: Bars, direction: int) -> None:
    assert counted(direction, change, then, now) <= change


def test_a_change_of_signature_is_no_movement_and_hides_none() -> None:
    still = [0.0] * 10 + [0.06] * 10
    assert movement(still, [A] * 10 + [B] * 10) == 0.0, "0.03 + 0.04 explain it"
    assert movement(still, [A] * 10 + [PLAIN] * 10) == pytest.approx(0.03)
    assert movement(still, [A] * 20) == pytest.approx(0.06)
    falling = [0.02 - 0.002 * place for place in range(10)] * 2
    assert movement(falling, [A] * 10 + [B] * 10) == pytest.approx(0.036), "both ways"
    wavers = [Bars("a", 0.0, 0.1, 0.1)] * 10 + [Bars("a", 0.0, 0.04, 0.04)] * 10
    assert movement(still, wavers) == pytest.approx(0.0)


def remember(memory: Memory, step: int, value: float, precision: Precision | None) -> None:
    log = math.log(value)
    memory.append(step, log, Bars.of(log, precision))


def test_two_of_three_readings_say_how_a_level_was_made() -> None:
    memory = Memory(1.5, 20)
    exact, rough = Precision("exact", 10.0, 10.0), Precision("rough", 9.0, 11.0)
    for step, precision in enumerate([exact, exact, exact, rough, exact, rough, rough, rough, None, None]):
        remember(memory, step, 10.0, precision)
    signatures = [memory.bars(place).signature for place in range(len(memory))]
    assert signatures == [*["exact"] * 5, *["rough"] * 4, ""]
    memory = Memory(1.5, 20)
    for step, (value, precision) in enumerate([(10.0, exact), (10.5, exact), (11.0, rough), (11.5, rough)]):
        remember(memory, step, value, precision)
    assert [memory.bars(place).signature for place in range(4)] == ["exact", "exact", MIXED, MIXED], "it moves"


margins = st.floats(0.0, 0.2)


@given(
    readings=st.lists(st.tuples(st.floats(1, 2), st.sampled_from([None, "a", "b"]), margins, margins), max_size=40),
    keep=st.integers(0, 40),
)
def test_the_truth_of_a_level_is_within_its_bars(
    readings: list[tuple[float, str | None, float, float]], keep: int
) -> None:
    memory, again = Memory(1e9, 1000), Memory(1e9, 1000)
    lows, highs, widest = [], [], 0.0
    for step, (value, signature, below, above) in enumerate(readings):
        if signature is None:
            below = above = 0.0
        widest = max(widest, below, above)
        lows.append(math.log(value) - below)
        highs.append(math.log(value) + above)
        bars = Precision(signature, value * math.exp(-below), value * math.exp(above), value * 1.5)
        remember(memory, step, value, bars if signature else None)
        level, known = memory.levels[-1], memory.bars(step)
        assert level - known.below <= median(lows[-3:]) + 1e-9
        if signature is None:
            assert median(highs[-3:]) <= level + known.above + 1e-9
        assert known.above <= HEADROOM * (math.log(1.5) + 1) + SLACK_LEVEL
    again.restore(msgpack.unpackb(msgpack.packb(memory.state())))
    for each in (memory, again):
        each.truncate(keep)
        remember(each, 100, 1.5, Precision("a", 1.4, 1.6, 1.7))
    assert again.state() == memory.state()


def test_nothing_is_remembered_of_plain_readings() -> None:
    memory = Memory(1.5, 20)
    for step in range(100):
        remember(memory, step, 10.0, None)
    assert not memory.marks
    assert memory.state().keys() == {"steps", "logs", "levels", "num_thinned"}


def test_margins_that_waver_are_few_marks_and_any_others_a_bounded_number() -> None:
    memory = Memory(1.5, 20)
    for step in range(1000):
        remember(memory, step, 10.0, Precision("a", 10 - 0.2 - 0.02 * (step % 7), 10.3))
    assert len(memory.state()["marks"]) <= 5
    for step in range(1000, 5000):
        remember(memory, step, 10.0, Precision("ab"[step // 5 % 2], 9.9 - step % 6, 10.3))
    marks = memory.state()["marks"]
    assert len(marks) == MAX_MARKS
    assert marks[0][1] == MIXED and marks[0][2] > math.log(10 / 6), "the widest"


def test_a_look_back_over_a_hole_is_known_to_be_long() -> None:
    memory = Memory(1.5, 20)
    memory.pass_by()
    for step in range(500, 1001):
        memory.append(step, 0.0)
    memory.pass_by()
    again = Memory(1.5, 20)
    again.restore(memory.state())
    for each in (memory, again):
        each.append(1005, 0.0)  # no hole worth the name
        each.pass_by()
        each.append(2010, 0.0)
        assert each.stretch(each.place(2010 / 1.05), 1.05) == pytest.approx(math.log(2) / math.log(1.05))
        assert each.stretch(each.place(900), 1.05) == 1.0
    assert again.state() == memory.state()
    assert memory.state()["holes"] == [1005]
    memory.truncate(0)
    assert memory.state() == Memory(1.5, 20).state()
