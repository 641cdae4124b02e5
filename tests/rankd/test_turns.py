import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.turns import Turns


def drain(turns: Turns[str]) -> list[str]:
    served = []
    while (item := turns.next()) is not None:
        served.append(item)
    return served


def test_each_user_in_turn_and_his_own_in_order() -> None:
    turns: Turns[str] = Turns(100, 1000)
    for item in ("a1", "a2", "a3", "b1", "c1", "c2"):
        assert turns.put(item[0], item, 1) == []
    assert turns.next() == "a1"
    turns.put("d", "d1", 1)
    assert drain(turns) == ["b1", "c1", "a2", "d1", "c2", "a3"]
    assert turns.next() is None and (turns.num_waiting, turns.num_bytes) == (0, 0)


def test_what_is_too_much_is_the_newest_of_the_longest_line() -> None:
    turns: Turns[str] = Turns(4, 1000)
    for item in ("a1", "a2", "a3", "b1"):
        assert turns.put(item[0], item, 1) == []
    assert turns.put("b", "b2", 1) == ["a3"]
    assert turns.put("a", "a4", 1) == ["a4"], "his own, not another's"
    assert drain(turns) == ["a1", "b1", "a2", "b2"]


def test_bytes_count_too() -> None:
    turns: Turns[str] = Turns(100, 10)
    assert turns.put("a", "a1", 4) == [] and turns.put("a", "a2", 4) == []
    assert turns.put("b", "b1", 5) == ["a2"]
    assert turns.put("c", "c1", 11) == ["c1"]
    assert drain(turns) == ["a1", "b1"]


@given(st.lists(st.one_of(st.none(), st.tuples(st.sampled_from("abc"), st.integers(0, 9)))))
def test_nothing_is_lost_or_doubled_and_the_bounds_hold(calls: list[tuple[str, int] | None]) -> None:
    turns: Turns[int] = Turns(5, 20)
    given_away: list[int] = []
    for number, call in enumerate(calls):
        if call is None:
            served = turns.next()
            given_away += [] if served is None else [served]
        else:
            given_away += turns.put(call[0], number, call[1])
        assert turns.num_waiting <= 5 and turns.num_bytes <= 20
    while (served := turns.next()) is not None:
        given_away.append(served)
    assert sorted(given_away) == [number for number, call in enumerate(calls) if call is not None]


@pytest.mark.parametrize("num_flooding", [1, 1000])
def test_how_long_one_waits_does_not_depend_on_how_many_another_brought(num_flooding: int) -> None:
    turns: Turns[str] = Turns(5000, 1 << 20)
    for _ in range(num_flooding):
        turns.put("flood", "flood", 1)
    turns.put("honest", "honest", 1)
    assert [turns.next(), turns.next()] == ["flood", "honest"]
