"""Rows of the history as lines of JSON, CSV and Parquet."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from rankd.cli.common import json_line
from rankd.records import METRIC_NAMES
from rankd_client.text import escape

IDENTIFYING = ("run", "step", "layer", "role", "rows", "cols", "finite")
"""What stands in every row, whichever metrics are asked for."""

COLUMNS = (
    *("run", "step", "layer", "rows", "cols", *METRIC_NAMES, "finite", "role", "shape"),
    *("method", "source_dtype", "wire_dtype", "measure_seconds", "time", "extra"),
)
"""Of a table: the keys of a measurement's JSON row; whatever else the row has is in `extra`, as JSON."""

ROW_GROUP = 20_000
"""Rows of a Parquet file that are in memory at once; each column of them is read by itself."""

FORMULA = ("=", "+", "-", "@", "\t", "\r")
"""What a formula begins with, in one spreadsheet or another."""

Row = Mapping[str, Any]


def write_json_lines(rows: Iterable[Row], file: TextIO) -> None:
    for row in rows:
        file.write(f"{json_line(row)}\n")


def write_csv(rows: Iterable[Row], file: TextIO, columns: Sequence[str] = COLUMNS) -> None:
    """A header and a line a row; null is nothing, and lists are JSON. See `_text` for names."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(map(_text, columns))
    for row in rows:
        writer.writerow([_cell(value) for value in _flat(row, columns)])


def write_parquet(rows: Iterable[Row], path: Path) -> None:
    """Needs pyarrow."""
    import pyarrow
    from pyarrow import parquet

    kinds = {
        **dict.fromkeys(("step", "rows", "cols"), pyarrow.int64()),
        **dict.fromkeys((*METRIC_NAMES, "measure_seconds", "time"), pyarrow.float64()),
        **{"finite": pyarrow.bool_(), "shape": pyarrow.list_(pyarrow.int64())},
    }
    schema = pyarrow.schema([(name, kinds.get(name, pyarrow.string())) for name in COLUMNS])
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows, ROW_GROUP):
            columns = zip(*(_flat(row, COLUMNS) for row in group), strict=True)
            arrays = [pyarrow.array(column, field.type) for column, field in zip(columns, schema, strict=True)]
            writer.write_batch(pyarrow.record_batch(arrays, schema=schema))


def _flat(row: Row, columns: Sequence[str]) -> list[Any]:
    values = [row.get(name) for name in columns]
    if columns is COLUMNS:
        rest = {key: value for key, value in row.items() if key not in COLUMNS or key == "extra"}
        values[-1] = json_line(rest) if rest else None
    return values


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return _text(value)
    return json.dumps(value) if isinstance(value, list | tuple | dict) else value


def _text(value: str) -> str:
    """Names come from the network, and CSV goes to terminals and spreadsheets: without control characters, and with a
    quote before what a spreadsheet would take for a formula."""
    return f"'{escape(value, len(value))}" if value.startswith(FORMULA) else escape(value, len(value))


def _groups(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    left = iter(rows)
    while group := list(islice(left, size)):
        yield group
