"""When each layer went last, whoever asks and whenever."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import given
from hypothesis import strategies as st

from rankd_client.lasttimes import LastTimes

SETS = (("a", "b"), ("b", "c"), (), ("a",))


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=20))
def test_it_is_as_if_each_was_written_down_at_once(calls: list[tuple[int, bool]]) -> None:
    times, plain = LastTimes(), dict[str, int]()
    for at, (which, asked) in enumerate(calls):
        times.went(SETS[which], at)
        plain |= dict.fromkeys(SETS[which], at)
        assert not asked or times.table() == plain
    assert times.table() == plain


def test_whoever_asks_meanwhile_changes_nothing() -> None:
    """A heartbeat's thread may be held up anywhere."""
    times, writing = LastTimes(), [("a",), ("b",)]

    class Names(tuple[str, ...]):
        def __iter__(self) -> Iterator[str]:
            pending, writing[:] = writing[:], []
            for at, names in enumerate(pending, 19):
                times.went(names, at)
            return super().__iter__()

    times.went(Names(("a", "b")), 10)
    times.table()
    assert times.table() == {"a": 19, "b": 20}


def test_others_are_forgotten() -> None:
    times = LastTimes()
    times.went(("a", "b"), 1)
    times.keep(["b", "never"])
    assert times.table() == {"b": 1}
    times.went(("a",), 2)
    assert times.table() == {"a": 2, "b": 1}
