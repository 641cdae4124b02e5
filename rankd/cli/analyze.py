"""`rankd analyze`: the metrics of a checkpoint, without a daemon."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave, print_json
from rankd_client.text import escape

COLUMNS = ("stable_rank", "effective_rank", "effective_rank_energy", "spectral_norm", "frobenius_norm")


def analyze(
    files: Annotated[list[Path], typer.Argument(help=".safetensors, or .pt, .pth, .bin, .ckpt read weights-only.")],
    json_lines: Annotated[bool, typer.Option("--json", help="One measurement a line, as JSON.")] = False,
) -> None:
    """Print the metrics of every weight matrix in checkpoints. Exits with 1 where one is non-finite or all zero."""
    from rankd.checkpoint import CheckpointError

    show = _print_rows if json_lines else _print_table
    try:
        num_problems = sum([show(file) for file in files])
    except CheckpointError as error:
        leave(escape(str(error)), WRONG_USE)
    if num_problems:
        raise typer.Exit(PROBLEM)


def _print_rows(file: Path) -> int:
    """Prints JSON rows; returns how many of them are non-finite or all zero."""
    from rankd.checkpoint import analyze_file

    num_problems = 0
    for measurement in analyze_file(file):
        num_problems += not measurement.finite or measurement.zero
        print_json(measurement.to_json())
    return num_problems


def _print_table(file: Path) -> int:
    """The same for people, with what was left out and why."""
    from rankd.checkpoint import analyze_file

    left_out: Counter[str] = Counter()
    measurements = list(analyze_file(file, on_skip=lambda _, reason: left_out.update([reason])))
    rows = [[escape(file.name), "shape", *COLUMNS, "note"], *(_row(m.to_json(), m.zero) for m in measurements)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        print("  ".join([*cells, row[-1]]).rstrip())
    for reason, count in left_out.items():
        print(f"left out: {count} tensor{'s' * (count > 1)} ({escape(reason)})")
    return sum(not m.finite or m.zero for m in measurements)


def _row(measurement: dict[str, Any], zero: bool) -> list[str]:
    values = ["-" if measurement[column] is None else f"{measurement[column]:.4g}" for column in COLUMNS]
    note = "all zero" if zero else "" if measurement["finite"] else "non-finite"
    return [escape(measurement["layer"]), " x ".join(map(str, measurement["shape"])), *values, note]
