"""Rows of trainers' own numbers, with whatever they put into them: written, and read as they were."""

from __future__ import annotations

import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankd.records import METRIC_NAMES, Measurement
from rankd.stages.reports import measurement_of
from rankd.store.entries import Entry
from rankd.store.reader import Reader
from rankd_client.wire import Reported, WireError

KEYS = (
    *METRIC_NAMES,
    *("wire_noise_floor", "source_noise_floor", "error_bound", "effective_rank_raw", "inside_noise"),
    *("effective_rank_low", "effective_rank_high", "nuclear_norm_low", "nuclear_norm_raw", "loss", "tier", "n", "body"),
)


def some(draw: random.Random, depth: int = 0) -> Any:
    kinds: list[Callable[[], Any]] = [
        lambda: None,
        lambda: draw.random() < 0.5,
        lambda: draw.randint(-(1 << 63), (1 << 64) - 1),
        lambda: draw.choice([0.0, -0.0, 1e308, 5e-324, draw.gauss(0, 1)]),
        lambda: "".join(draw.choices(string.printable + "ü\0€", k=5)),
    ]
    if depth < 3:
        kinds.append(lambda: [some(draw, depth + 1) for _ in range(2)])
        kinds.append(lambda: {draw.choice("abc"): some(draw, depth + 1)})
    return draw.choice(kinds)()


def rows(count: int) -> list[Measurement]:
    draw, found = random.Random(5), []
    while len(found) < count:
        body = {draw.choice(KEYS): some(draw) for _ in range(4)} | {"rows": draw.randint(0, 9), "cols": 3}
        try:
            found.append(measurement_of("r", Reported("w", len(found), body, "feature"), 1.0))
        except WireError:
            continue
    return found


def test_what_was_reported_is_read_as_it_was(open_writer: Any, data: Path) -> None:
    given = rows(300)
    writer = open_writer()
    writer.write(*(Entry(n, row) for n, row in enumerate(given, 1)))
    writer.close(30.0)
    with Reader(data) as reader:
        read = [row for _, row in reader.measurements("r")]
    assert [row.to_json() for row in read] == [row.to_json() for row in given]
