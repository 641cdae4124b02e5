"""What a row has in columns of its own comes back as it was told, key for key."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.records import METRIC_NAMES, Measurement
from rankd.store.columns import COLUMNS, CORRECTED, FURTHER, HAS_ALL, num_own, pack, unpack
from rankd.store.entries import Entry
from rankd.store.errors import StoreError
from rankd.store.reader import Reader

Look = Callable[..., list[Any]]
Open = Callable[..., Any]

floats = st.none() | st.floats(allow_nan=False, allow_infinity=False)
anything = (
    floats | st.booleans() | st.integers(-(1 << 63), (1 << 63) - 1) | st.text(max_size=5) | st.just([1, {"a": None}])
)
BARS = [f"{name}_{end}" for name in CORRECTED for end in ("low", "high")]


def measurement(metrics: dict[str, Any], extra: dict[str, Any]) -> Measurement:
    return Measurement("r", "a", 1, (4, 3), True, False, metrics, extra=extra, time=1.0)


@given(
    metrics=st.fixed_dictionaries({}, optional=dict.fromkeys((*METRIC_NAMES, "alpha"), floats)),
    extra=st.fixed_dictionaries({}, optional=dict.fromkeys(("tier", "loss", *FURTHER, *BARS), anything)),
    barred=st.sets(st.sampled_from(CORRECTED)),
)
def test_any_row_comes_back(metrics: dict[str, Any], extra: dict[str, Any], barred: set[str]) -> None:
    for name in barred:
        ends = metrics.get(name), extra.get(f"{name}_raw")
        if None not in ends and not {type(end) for end in ends} - {float, int}:
            extra |= {f"{name}_low": min(ends), f"{name}_high": max(ends)}
    told = measurement(metrics, extra)
    tier, has, values, rest = pack(told)
    assert not has & ~HAS_ALL and len(values) == len(COLUMNS)
    with sqlite3.connect(":memory:") as connection:
        numbers = [f"{name} REAL" for name in COLUMNS[:-1]]
        connection.execute(f"CREATE TABLE t ({', '.join(numbers)}, {COLUMNS[-1]} INTEGER)")
        connection.execute(f"INSERT INTO t VALUES ({', '.join('?' * len(values))})", values)
        (row,) = connection.execute("SELECT * FROM t").fetchall()
    connection.close()
    found = measurement(*unpack(tier, has, row, json.loads(json.dumps(rest))))
    assert alike(found) == alike(told)


def alike(row: Measurement) -> str:
    return json.dumps(row.to_json(), sort_keys=True).replace("-0.0", "0.0")


def test_exact_rows_and_nulls_of_the_norms_tier_need_no_json() -> None:
    raw = {"effective_rank_raw": 2.5, "nuclear_norm_raw": 9.0, "effective_rank_ratio_raw": 0.5, "inside_noise": False}
    bars = {"effective_rank_low": 2.25, "effective_rank_high": 2.5}
    noise = {"wire_noise_floor": 0.125, "source_noise_floor": 1e-9}
    exact = {"tier": "exact", **noise, "error_bound": 1e-12, **raw, **bars}
    packed = pack(measurement(dict.fromkeys(METRIC_NAMES, 2.25), exact))
    assert (packed.tier, packed.rest, num_own(packed.values)) == ("exact", {}, 10)
    packed = pack(measurement(dict.fromkeys(METRIC_NAMES) | {"spectral_norm": 2.0}, {"tier": "norms", **noise}))
    assert (packed.tier, packed.rest, num_own(packed.values)) == ("norms", {}, 2)
    assert unpack(*packed)[0] == dict.fromkeys(METRIC_NAMES) | {"spectral_norm": 2.0}


def test_bars_of_another_make_stay_as_they_are() -> None:
    bars = {"effective_rank_low": 2.0, "effective_rank_high": math.nextafter(2.5, 3)}
    packed = pack(measurement({"effective_rank": 2.0}, {"effective_rank_raw": 2.5, **bars}))
    assert packed.rest == bars


def test_kinds_are_told_apart_by_what_rows_have(make: Any, open_writer: Open, look: Look, data: Path) -> None:
    extras = [{}, {"tier": "exact"}, {"tier": "norms"}, {"error_bound": None}, {"tier": "exact"}, {"tier": ""}]
    rows = [make.measurement(step=step, extra=extra) for step, extra in enumerate(extras)]
    open_writer().write(*(Entry(n, row) for n, row in enumerate(rows, 1)))
    assert look("SELECT tier, count(*) FROM kind GROUP BY tier ORDER BY tier") == [("", 2), ("exact", 1), ("norms", 1)]
    with Reader(data) as reader:
        assert [row for _, row in reader.measurements("r")] == rows
        assert reader.metrics("r") == [*METRIC_NAMES, "tier"]


@pytest.mark.parametrize("column", ["has = -1", f"has = {HAS_ALL + 1}", "tier = x'00'"])
def test_a_damaged_kind_is_noticed(make: Any, open_writer: Open, look: Look, data: Path, column: str) -> None:
    open_writer().write(*make.entries(1))
    look(f"UPDATE kind SET {column}")
    with Reader(data) as reader, pytest.raises(StoreError, match="the file is damaged"):
        list(reader.measurements("r"))


def test_all_that_was_counted_is_freed(make: Any, open_writer: Open, look: Look) -> None:
    """Whatever columns a row has."""
    from rankd.store.removal import Removal

    writer = open_writer()
    extras = [{}, {"tier": "exact", "error_bound": 0.5, "loss": 1}, {"wire_noise_floor": None, "inside_noise": True}]
    metrics = dict.fromkeys(METRIC_NAMES, 1.5)
    entries = [Entry(n, make.measurement(step=n, metrics=metrics, extra=extra)) for n, extra in enumerate(extras, 1)]
    writer.write(*entries)
    before = look("SELECT measurement_bytes FROM run")[0][0]
    writer.write(*(Entry(n + 3, entry.measurement) for n, entry in enumerate(entries, 1)))
    added = look("SELECT measurement_bytes FROM run")[0][0] - before
    Removal(writer._home.ledger._connection, lambda: 1e4).measurements(1, 3)
    assert look("SELECT measurement_bytes FROM run") == [(before,)] and added > 3 * 120
