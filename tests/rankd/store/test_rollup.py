"""The roll-up is what a direct look at the rows on the current line gives, however it came about."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import pytest

from rankd.store import rollup
from rankd.store.entries import Entry
from rankd.store.rollup import MAX_BINS

Look = Callable[..., list[Any]]
Open = Callable[..., Any]
NAMES = ("stable_rank", "effective_rank", "spectral_norm")


def direct(entries: list[Entry], width: int) -> dict[tuple[str, int], list[float | None]]:
    """(layer, bin) → num, num_finite, and sum, min and max of each metric, by the rule in words: a measurement at the
    step of the layer's last sound one or before it makes void what was recorded of that step or later."""
    lines: dict[str, list[Entry]] = defaultdict(list)
    last_sound: dict[str, int] = {}
    for entry in entries:
        measurement, layer = entry.measurement, entry.measurement.layer
        if measurement.step is None:
            continue
        if measurement.step <= last_sound.get(layer, -1):
            lines[layer] = [kept for kept in lines[layer] if (kept.measurement.step or 0) < measurement.step]
        if measurement.finite and not measurement.zero:
            last_sound[layer] = measurement.step
        lines[layer].append(entry)
    bins: dict[tuple[str, int], list[Entry]] = defaultdict(list)
    for layer, line in lines.items():
        for entry in line:
            bins[layer, (entry.measurement.step or 0) // width].append(entry)
    return {key: aggregate(held) for key, held in bins.items()}


def aggregate(held: list[Entry]) -> list[float | None]:
    row: list[float | None] = [len(held), sum(entry.measurement.finite for entry in held)]
    for name in NAMES:
        values = [value for entry in held if (value := entry.measurement.metrics[name]) is not None]
        row += [math.fsum(values), min(values), max(values)] if values else [None] * 3
    return row


def rolled_up(look: Look) -> dict[tuple[str, int], list[float | None]]:
    columns = ", ".join(f"{name}_{kind}" for name in NAMES for kind in ("sum", "min", "max"))
    rows = look(f"SELECT name, bin, num, num_finite, {columns} FROM rollup JOIN layer USING (layer_id)")
    return {(name, bin_): list(values) for name, bin_, *values in rows}


def entry_of(make: Any, n: int, layer: str, step: int | None, chance: random.Random) -> Entry:
    kind = chance.random()
    finite, zero = kind > 0.05, 0.05 < kind < 0.1
    values = [chance.choice([chance.random(), None]) if kind > 0.95 else chance.random() for _ in NAMES]
    metrics = {name: None if not finite else 0.0 if zero else value for name, value in zip(NAMES, values, strict=True)}
    return Entry(n, make.measurement(layer=layer, step=step, finite=finite, zero=zero, metrics=metrics))


def check(entries: list[Entry], look: Look) -> int:
    """Returns the width of a bin."""
    width, rolled_n = look("SELECT bin_steps, rolled_n FROM run")[0]
    assert rolled_n == entries[-1].n
    expected, found = direct(entries, width), rolled_up(look)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert found[key] == pytest.approx(values), key
    bins = [bin_ for _, bin_ in found]
    assert max(bins) - min(bins) < MAX_BINS
    return int(width)


def roll_up(writer: Any) -> None:
    """Close, which brings it up to date."""
    assert writer.close(30)


@pytest.mark.parametrize("slice_rows", [1, 7, 100, 10_000])
@pytest.mark.parametrize("seed", range(3))
def test_equals_a_direct_aggregate(
    make: Any, open_writer: Open, look: Look, monkeypatch: pytest.MonkeyPatch, slice_rows: int, seed: int
) -> None:
    """Layers that go back, that skip, that measure a step again, that hold nothing finite; with and without a step."""
    monkeypatch.setattr(rollup, "SLICE_ROWS", slice_rows)
    chance = random.Random(seed)
    steps = {f"layer-{index}": 0 for index in range(4)}
    entries = []
    for n in range(1, 601):
        layer = chance.choice(list(steps))
        back = chance.random()
        steps[layer] = chance.randrange(steps[layer] + 1) if back < 0.02 else steps[layer] + chance.choice((0, 1, 1, 5))
        entries.append(entry_of(make, n, layer, None if back > 0.99 else steps[layer], chance))
    for part in (entries[:150], entries[150:450], entries[450:]):
        writer = open_writer()
        writer.write(*part)
        roll_up(writer)
    check(entries, look)


@pytest.mark.parametrize("older_rows", [0, 40, 50_000])
@pytest.mark.parametrize("slice_rows", [3, 50, 10_000])
@pytest.mark.parametrize("seed", [0, 1, 113])
def test_equals_a_direct_aggregate_however_far_a_run_goes_back(
    make: Any,
    open_writer: Open,
    look: Look,
    monkeypatch: pytest.MonkeyPatch,
    slice_rows: int,
    seed: int,
    older_rows: int,
) -> None:
    """As a script that is started again under its name: every layer goes back, to the first step or near it, or far."""
    monkeypatch.setattr(rollup, "SLICE_ROWS", slice_rows)
    monkeypatch.setattr(rollup, "OLDER_ROWS", older_rows)
    chance = random.Random(seed)
    layers = ["layer-0", "layer-1", "layer-2"]
    entries: list[Entry] = []
    step = first = 0
    for _ in range(5):
        for step in range(first, first + chance.randrange(20, 300), chance.choice((1, 1, 3, 7))):
            for layer in layers:
                if chance.random() < 0.7:
                    ahead = chance.random() < 0.05  # recorded before its turn, as what is not sound may be
                    entries.append(entry_of(make, len(entries) + 1, layer, step + ahead * chance.randrange(9), chance))
        first = chance.choice((0, 0, 1, 3, chance.randrange(step + 1), step // 2))
    cuts = sorted(chance.sample(range(1, len(entries)), 2))
    for part in (entries[: cuts[0]], entries[cuts[0] : cuts[1]], entries[cuts[1] :]):
        writer = open_writer()
        writer.write(*part)
        roll_up(writer)
    check(entries, look)


def test_a_run_that_begins_again_leaves_its_older_rows_alone(
    make: Any, open_writer: Open, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All of them are void: looking at them once more would hold up commits for seconds."""
    looked_at: list[Any] = []
    monkeypatch.setattr(rollup, "_FROM_N", looked_at)
    writer = open_writer()
    entries = make.entries(600)
    again = [Entry(n, make.measurement(layer="ab"[n % 2], step=(n - 601) // 2)) for n in range(601, 641)]
    writer.write(*entries)
    roll_up(writer)
    writer = open_writer()
    writer.write(*again)
    roll_up(writer)
    check([*entries, *again], look)


def test_bins_widen_with_the_run(make: Any, open_writer: Open, look: Look) -> None:
    chance = random.Random(0)
    entries: list[Entry] = []
    widths = []
    for last_step in (128, 129, 1000, 1_000_000, (1 << 63) - 1):
        writer = open_writer()
        first = entries[-1].measurement.step + 1 if entries else 0
        steps = [*range(first, min(last_step, first + 300)), last_step - 1]
        more = [entry_of(make, len(entries) + at, "a", step, chance) for at, step in enumerate(steps, 1)]
        writer.write(*more)
        entries += more
        roll_up(writer)
        widths.append(check(entries, look))
    assert widths == [1, 2, 8, 8192, 1 << 56]


def test_bins_count_from_where_a_run_begins(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    first = 128 * 1000
    entries = [Entry(n, make.measurement(step=first + n - 1)) for n in range(1, 129)]
    writer.write(*entries)
    roll_up(writer)
    assert check(entries, look) == 1


def test_runs_are_rolled_up_each_by_itself(make: Any, open_writer: Open, look: Look) -> None:
    writer = open_writer()
    writer.write(*make.entries(10, "short"), *make.entries(1000, "long", ("a",)))
    roll_up(writer)
    assert look("SELECT name, bin_steps, rolled_n FROM run") == [("short", 1, 10), ("long", 8, 1000)]
    query = "SELECT name, sum(num) FROM rollup JOIN run USING (run_id) GROUP BY name"
    assert look(query) == [("long", 1000), ("short", 10)]
