import pytest

from rankd.plan.window import WINDOW_SECONDS, Window


def test_seconds_in_each_second_since_the_beginning_and_then_of_the_last_minutes() -> None:
    window = Window(1000.0)
    assert window.shares(1000.0) == {}
    for second in range(20):
        window.add("a", 0.5, 1000.0 + second)
    window.add("b", 2.0, 1019.0)
    assert window.shares(1020.0) == pytest.approx({"a": 0.5, "b": 0.1})
    for second in range(20, 600):
        window.add("a", 0.5, 1000.0 + second)
    assert window.shares(1600.0) == pytest.approx({"a": 0.5}, rel=0.1), "b is long ago"
    assert window.shares(1600.0 + 2 * WINDOW_SECONDS) == {}
