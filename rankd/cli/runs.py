"""`rankd runs`: what is in the history, and how new it is."""

from __future__ import annotations

import time
from dataclasses import asdict
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankd.cli.common import PROBLEM, leave, print_json
from rankd.cli.history import Data, open_history, until_reader_leaves
from rankd_client.text import escape

if TYPE_CHECKING:
    from rankd.store.reader import Reader
    from rankd.store.rows import RunRow

RUN_HEADER = ("run", "layers", "measurements", "last step", "last seen", "alerts firing")
LAYER_HEADER = ("run", "layer", "role", "measurements", "superseded", "last step", "last seen")


def runs(
    data: Data = None,
    run: Annotated[str, typer.Option("--run", help="Only runs like this glob.")] = "*",
    layers: Annotated[bool, typer.Option("--layers", help="Their layers: how new is what is known of each.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """List the runs in the history, the one heard of last at the end. Exits with 1 where there is none."""
    with open_history(data) as reader:
        found = [row for row in reader.runs() if fnmatchcase(row.name, run) and not _is_forgotten(row)]
        if not found:
            leave(f"no run like {escape(run)!r} in {reader.file.parent}", PROBLEM)
        rows = _layer_rows(reader, found) if layers else [_run_row(row) for row in found]
        with until_reader_leaves():
            if json_lines:
                for row in rows:
                    print_json(row)
            else:
                _print_table(LAYER_HEADER if layers else RUN_HEADER, [_cells(row, layers) for row in rows])


def _is_forgotten(row: RunRow) -> bool:
    """Of which retention has left nothing but its numbers."""
    return row.last_time is None


def _run_row(row: RunRow) -> dict[str, Any]:
    values = asdict(row)
    return {"run": values.pop("name"), **values}


def _layer_rows(reader: Reader, found: list[RunRow]) -> list[dict[str, Any]]:
    return [
        {"run": run.name, "layer": values.pop("name"), **values}
        for run in found
        for values in map(asdict, reader.layers(run.name))
    ]


def _cells(row: dict[str, Any], layers: bool) -> list[str]:
    seen = _age(row["last_time"], time.time())
    step = escape(row["last_step"])
    run, count = escape(row["run"], 200), str(row["num_measurements"])
    if layers:
        return [run, escape(row["layer"], 200), escape(row["role"]), count, str(row["num_superseded"]), step, seen]
    return [run, str(row["num_layers"]), count, step, seen, str(row["num_firing"] or "-")]


def _age(then: float | None, now: float) -> str:
    """A clock that was set back makes it "0 s ago" at worst."""
    if then is None:
        return "-"
    seconds = max(0.0, now - then)
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def _print_table(header: tuple[str, ...], rows: list[list[str]]) -> None:
    """Names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    names = {"run", "layer", "role"}
    for row in (header, *rows):
        cells = zip(row, header, widths, strict=True)
        print("  ".join(cell.ljust(w) if title in names else cell.rjust(w) for cell, title, w in cells).rstrip())
