import math
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.detectors.memory import THINNED_RATIO, Memory

logs_of = st.lists(st.floats(-1e3, 1e3), max_size=60)


@given(logs=logs_of, start=st.integers(0, 10**6), back=st.integers(0, 30))
def test_state_round_trip_keeps_levels_of_readings_that_are_gone(logs: list[float], start: int, back: int) -> None:
    memory, again = Memory(1.1, 4), Memory(1.1, 4)
    for step, log in enumerate(logs, start):
        memory.append(step, log)
    memory.truncate(start + len(logs) - back)
    again.restore(memory.state())
    for column in ("steps", "logs", "levels"):
        assert getattr(again, column).tobytes() == getattr(memory, column).tobytes()
    for memory_like in (memory, again):
        memory_like.append(start + len(logs), 0.125)
    assert again.state() == memory.state()


@given(logs=logs_of)
def test_a_level_is_the_median_of_the_last_three(logs: list[float]) -> None:
    memory = Memory(1e9, 1000)
    for step, log in enumerate(logs):
        memory.append(step, log)
    assert list(memory.levels) == [median(logs[max(0, index - 2) : index + 1]) for index in range(len(logs))]


def test_columns_are_little_endian_bytes() -> None:
    memory = Memory(1.5, 20)
    memory.append(258, 1.0)
    assert memory.state() == {
        "steps": b"\x02\x01" + bytes(6),
        "logs": b"\x00\x00\x00\x00\x00\x00\xf0\x3f",
        "levels": b"\x00\x00\x00\x00\x00\x00\xf0\x3f",
        "num_thinned": 0,
    }


def test_what_is_looked_up_stays() -> None:
    memory = Memory(1.5, 20)
    for step in range(1, 3001):
        memory.append(step, 0.0)
    found = memory.at(2000.5)
    assert found is not None and found.step == 2000
    assert memory.at(0.5) is None
    with pytest.raises(ValueError, match="step is 3000; expected one after 3000"):
        memory.append(3000, 0.0)


def test_older_readings_are_thinned_to_a_bounded_number_with_the_levels_they_had() -> None:
    memory, logs = Memory(1.5, 20), [float(step * 7 % 100) for step in range(100_001)]
    for step in range(1, 100_001):
        memory.append(step, logs[step])
    dense = [step for step in memory.steps if step > 100_000 / 1.5]
    assert dense == list(range(dense[0], 100_001)) and dense[0] <= 100_000 / 1.5 + 1
    old = memory.steps[: len(memory) - len(dense)]
    # what is beyond reach is thinned an eighth at a time
    assert len(old) < 200 + math.log(100_000 / 200) / math.log(THINNED_RATIO) + 100_000 / 8
    for place in range(len(memory)):
        step = memory.steps[place]
        assert memory.levels[place] == median(logs[max(1, step - 2) : step + 1])
    for step in range(1, 100_001, 97):
        found = memory.at(step)
        assert found is not None and found.step <= step <= max(found.step * THINNED_RATIO + 1, found.step + 1)


def test_where_readings_are_far_apart_none_is_given_up() -> None:
    memory = Memory(1.5, 20)
    steps = [round(100 * 1.01**index) for index in range(1000)]
    for step in steps:
        memory.append(step, 0.0)
    assert list(memory.steps) == steps
