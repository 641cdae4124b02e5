"""`rankd analyze`: the metrics of a checkpoint, without a daemon."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave, print_json

COLUMNS = ("stable_rank", "effective_rank", "effective_rank_energy", "spectral_norm", "frobenius_norm")


def analyze(
    files: Annotated[
        list[Path], typer.Argument(help=".safetensors files, or .pt, .pth, .bin or .ckpt read weights-only.")
    ],
    json_lines: Annotated[bool, typer.Option("--json", help="One measurement a line, as JSON.")] = False,
) -> None:
    """Print the metrics of every weight matrix in checkpoints. Exits with 1 where one is non-finite or all zero."""
    from rankd.checkpoint import CheckpointError, analyze_file

    problems = 0
    for file in files:
        try:
            rows = [] if json_lines else [_header(file)]
            for measurement in analyze_file(file):
                problems += not measurement.finite or measurement.zero
                if json_lines:
                    print_json(measurement.to_json())
                else:
                    rows.append(_row(measurement.to_json()))
        except CheckpointError as error:
            leave(str(error), WRONG_USE)
        _print_table(rows)
    if problems:
        raise typer.Exit(PROBLEM)


def _header(file: Path) -> list[str]:
    from rankd_client.text import escape

    return [escape(file.name), "shape", *COLUMNS, "note"]


def _row(measurement: dict[str, Any]) -> list[str]:
    from rankd_client.text import escape

    values = [measurement[column] for column in COLUMNS]
    note = "non-finite" if not measurement["finite"] else "all zero" if measurement["spectral_norm"] == 0 else ""
    shape = " x ".join(map(str, measurement["shape"]))
    return [escape(measurement["layer"]), shape, *("-" if v is None else f"{v:.4g}" for v in values), note]


def _print_table(rows: list[list[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        print("  ".join([*cells, row[-1]]).rstrip())
