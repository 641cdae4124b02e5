from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.records import Measurement
from rankd.store.entries import Entry
from rankd.store.line import Line, _returns
from rankd.store.reader import Reader

NULL = {"stable_rank": None, "effective_rank": None, "spectral_norm": None}


def current(rows: list[tuple[int, bool]]) -> list[int]:
    """The numbers (from 1) of the rows (step, sound) that are on the current line, by the definition in words."""
    void: set[int] = set()
    for n, (step, _) in enumerate(rows, 1):
        sound_before = [s for s, sound in rows[: n - 1] if sound]
        if sound_before and step <= sound_before[-1]:
            void |= {k for k in range(1, n) if rows[k - 1][0] >= step}
    return [n for n in range(1, len(rows) + 1) if n not in void]


@given(st.lists(st.tuples(st.integers(0, 8), st.booleans()), max_size=20))
def test_line_is_as_defined(rows: list[tuple[int, bool]]) -> None:
    numbered = [(n, step, int(sound)) for n, (step, sound) in enumerate(rows, 1)]
    line = Line(("w", "weight", n, step) for n, step in _returns(numbered))
    measurements = [Measurement("r", "w", step, (1, 1), True, False, {}) for step, _ in rows]
    assert [n for n, m in enumerate(measurements, 1) if line.holds(m, n)] == current(rows)
    n, steps, _ = np.array(numbered, float).reshape(-1, 3).T
    assert n[line.holds_each("w", "weight", n, steps)].tolist() == current(rows)
    assert line.holds_each("other", "weight", n, steps).all()


@pytest.mark.parametrize(
    ("rows", "kept"),
    [
        ([(1, True), (2, True), (3, True), (2, True), (3, True)], [1, 4, 5]),  # back to the checkpoint of step 1
        ([(1, True), (2, True), (2, True)], [1, 3]),
        (
            [(8, True), (10, False), (9, True), (11, True)],
            [1, 2, 3, 4],
        ),  # measured ahead of its turn: nothing went back
        ([(8, True), (10, False), (5, True), (6, True)], [3, 4]),
        ([(8, True), (5, False), (6, False), (7, True)], [2, 3, 4]),  # went back, and into a NaN
        ([(5, False), (3, False)], [1, 2]),
    ],
)
def test_returns_in_the_history(
    make: Any, open_writer: Any, data: Path, rows: list[tuple[int, bool]], kept: list[int]
) -> None:
    straight = [Entry(2 * n, make.measurement(layer="straight", step=n)) for n in range(1, len(rows) + 1)]
    bent = [
        Entry(
            2 * n - 1,
            make.measurement(layer="bent", step=step, finite=sound, metrics={"stable_rank": n} if sound else NULL),
        )
        for n, (step, sound) in enumerate(rows, 1)
    ]
    open_writer().write(*(entry for pair in zip(bent, straight, strict=True) for entry in pair))
    with Reader(data) as reader:
        found = [n for n, _ in reader.measurements("r", current=True)]
        assert found == sorted([entry.n for entry in straight] + [2 * n - 1 for n in kept])
        steps, values = reader.history("r", "bent", "stable_rank")
        assert steps.tolist() == [rows[n - 1][0] for n in kept]
        assert [None if np.isnan(v) else v for v in values] == [n if rows[n - 1][1] else None for n in kept]
        assert len(list(reader.measurements("r"))) == 2 * len(rows)  # all of it is still there
