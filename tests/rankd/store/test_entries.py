"""Rows of one snapshot: in the history all of them, or none."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.config import HistoryConfig
from rankd.records import Measurement
from rankd.store.entries import AlertEntry, AnyEntry, Entry, oldest_without_alerts
from rankd.store.writer import Writer


def snapshots(make: Any, *sizes: int) -> list[list[Entry]]:
    """Of so many rows each."""
    found: list[list[Entry]] = []
    n = 0
    for step, size in enumerate(sizes, 1):
        names = [*(f"w:{place}" for place in range(size - 1)), "w"]
        rows = [make.measurement("r", name, step) for name in names]
        found.append([Entry(n + at, row, more=at < size) for at, row in enumerate(rows, 1)])
        n += size
    return found


@pytest.mark.parametrize("max_batch", [1, 2, 3, 4, 100])
def test_a_commit_ends_where_a_snapshot_ends(
    make: Any, data: Path, look: Callable[..., list[Any]], monkeypatch: pytest.MonkeyPatch, max_batch: int
) -> None:
    monkeypatch.setattr("rankd.store.writer.MAX_BATCH", max_batch)
    sizes = (4, 1, 3, 1, 1, 7, 2)
    seen: list[tuple[int, int]] = []

    def look_on(entries: list[AnyEntry]) -> None:
        (rows,) = look("SELECT count(*) FROM measurement")
        seen.append((len(entries), *rows))

    writer = Writer(data, HistoryConfig(), look_on, lambda error: None)
    for entries in snapshots(make, *sizes):
        assert writer.submit(*entries) == []
    writer.start()
    assert writer.close(30)
    ends = [sum(sizes[: place + 1]) for place in range(len(sizes))]
    assert {rows for _, rows in seen} <= set(ends) and seen[-1][1] == ends[-1]
    assert max(size for size, _ in seen) <= max_batch + max(sizes) - 1, "no larger than it has to be"
    assert max_batch > 90 or len(seen) > 2


def test_snapshots_are_given_up_whole_the_oldest_without_alerts_first(make: Any, data: Path) -> None:
    writer = Writer(data, HistoryConfig(max_pending=6), lambda entries: None, lambda error: None)
    first, second, third, fourth = snapshots(make, 3, 2, 1, 3)
    first[1] = Entry(first[1].n, first[1].measurement, ((1, make.alert()),), more=True)
    for entries in (first, second, third):
        assert writer.submit(*entries) == []
    assert writer.submit(*fourth) == [*second, *third]
    assert [entry for _, entry in writer._waiting] == [*first, *fourth]
    assert writer.close(0.1) is False


Rows = st.lists(st.tuples(st.integers(1, 5), st.booleans(), st.booleans()), max_size=20)


@given(Rows, st.integers(0, 30))
def test_whatever_is_given_up_is_whole_and_enough(kinds: list[tuple[int, bool, bool]], num: int) -> None:
    entries: list[AnyEntry] = []
    groups: list[tuple[range, bool]] = []
    for size, has_alert, by_itself in kinds:
        start = len(entries)
        if by_itself:
            entries.append(AlertEntry(1, None))  # type: ignore[arg-type]
        else:
            row = Measurement("r", "w", 1, (1, 1), True, False, {})
            alerts: Any = [((1, None),) if has_alert and at == 0 else () for at in range(size)]
            entries += [Entry(1, row, alerts[at], more=at < size - 1) for at in range(size)]
        groups.append((range(start, len(entries)), by_itself or has_alert))
    going = oldest_without_alerts(entries, num)
    taken = [(group, kept) for group, kept in groups if going & set(group)]
    assert all(set(group) <= going for group, _ in taken)
    assert len(going) >= min(num, len(entries)) and len(going) < num + 5
    plain = [group for group, kept in groups if not kept]
    if any(kept for _, kept in taken):
        assert all(set(group) <= going for group in plain), "all others went before"
    taken_plain = [group for group, kept in taken if not kept]
    assert taken_plain == plain[: len(taken_plain)]
