"""`rankd export`: a run as a file of its own."""

from __future__ import annotations

import gzip
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave
from rankd.cli.history import Current, Data, Layers, check_layers, find_run, open_history, until_reader_leaves

FORMATS = (".parquet", ".csv", ".csv.gz", ".jsonl", ".jsonl.gz")


def export(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="x.parquet, x.csv[.gz], x.jsonl[.gz]; - for JSON lines on stdout."),
    ] = None,
    data: Data = None,
    layer: Layers = None,
    current: Current = False,
    force: Annotated[bool, typer.Option("--force", help="Replace the file, if there is one.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="JSON lines on stdout, as -o - does.")] = False,
) -> None:
    """Write the measurements of a run to a file, whole or not at all."""
    if (output is None) != json_lines:
        leave("expected either -o FILE or --json", WRONG_USE)
    target = Path("-") if output is None else output
    to_stdout = str(target) == "-"
    if not to_stdout:
        _check(target, force)
    with open_history(data) as reader:
        find_run(reader, run)
        check_layers(reader, run, layer or ())
        found = reader.measurements(run, layers=layer or (), current=current)
        rows = (measurement.to_json() for _, measurement in found)
        if to_stdout:
            from rankd.cli.formats import write_json_lines

            with until_reader_leaves():
                write_json_lines(rows, sys.stdout)
        else:
            _write(rows, target)


def _check(output: Path, force: bool) -> None:
    """Leaves before anything is read where it cannot come to a good end."""
    if _format(output) is None:
        leave(f"-o {output}: no known format; expected a name that ends in {', '.join(FORMATS)}, or -", WRONG_USE)
    if not output.parent.is_dir():
        leave(f"-o {output}: {output.parent} is no directory", WRONG_USE)
    if output.is_dir() or (output.exists() and not force):
        leave(f"-o {output}: is there already; expected a new name, or --force to replace a file", WRONG_USE)
    if _format(output) == ".parquet":
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError:
            leave(
                f"-o {output}: Parquet needs pyarrow, which is not installed: pip install 'rankd[parquet]'", WRONG_USE
            )


def _format(output: Path) -> str | None:
    return next((suffix for suffix in FORMATS if output.name.lower().endswith(suffix)), None)


def _write(rows: Iterator[Mapping[str, Any]], output: Path) -> None:
    """Under another name first, so that nobody ever sees half a file."""
    partial = output.with_name(f".{output.name}.{os.getpid()}.partial")
    try:
        _write_as(str(_format(output)), rows, partial)
        partial.replace(output)
    except OSError as error:
        leave(f"-o {output}: {error.strerror or error}", PROBLEM)
    finally:
        partial.unlink(missing_ok=True)


def _write_as(kind: str, rows: Iterator[Mapping[str, Any]], path: Path) -> None:
    from rankd.cli.formats import write_csv, write_json_lines, write_parquet

    if kind == ".parquet":
        write_parquet(rows, path)
        return
    write = write_csv if kind.startswith(".csv") else write_json_lines
    if kind.endswith(".gz"):
        with gzip.open(path, "xt", encoding="utf-8", newline="") as packed:
            write(rows, packed)
    else:
        with path.open("x", encoding="utf-8", newline="") as file:
            write(rows, file)
