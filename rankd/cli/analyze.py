"""`rankd analyze`: the metrics of a checkpoint, without a daemon."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave, print_json
from rankd_client.text import escape

if TYPE_CHECKING:
    from rankd.records import Measurement

COLUMNS = ("stable_rank", "effective_rank", "effective_rank_energy", "spectral_norm", "frobenius_norm")


def analyze(
    files: Annotated[list[Path], typer.Argument(help=".safetensors, or .pt, .pth, .bin, .ckpt read weights-only.")],
    tier: Annotated[
        str,
        typer.Option(
            help="norms, estimate, exact, or auto: exact, but estimates with a bar of large matrices. An estimate "
            "whose bar is too wide becomes exact by itself."
        ),
    ] = "auto",
    device: Annotated[str, typer.Option(envvar="RANKD_DEVICE", help="auto, cpu or cuda:N.")] = "cpu",
    svdvals: Annotated[bool, typer.Option("--svdvals", help="Exact by torch.linalg.svdvals in float64.")] = False,
    split: Annotated[
        list[str] | None,
        typer.Option(help="GLOB=RULE: how weights of these names are cut into parts, as docs/weights.md has it."),
    ] = None,
    metric: Annotated[
        list[str] | None, typer.Option(help="A metric to measure beside the usual ones: power_law_alpha.")
    ] = None,
    json_lines: Annotated[bool, typer.Option("--json", help="One measurement a line, as JSON.")] = False,
) -> None:
    """Print the metrics of every weight matrix in checkpoints. Exits with 1 where one is non-finite or all zero."""
    from rankd.checkpoint import CheckpointError
    from rankd.config import ConfigError

    show = _print_rows if json_lines else _print_table
    try:
        measure = _measurer(tier, device, svdvals, split or [], metric or [])
        num_problems = sum([show(file, measure) for file in files])
    except (CheckpointError, ConfigError) as error:
        leave(escape(str(error)), WRONG_USE)
    if num_problems:
        raise typer.Exit(PROBLEM)


Measurer = Callable[[Path, Callable[[str, str], None] | None], Iterator["Measurement"]]


def _measurer(tier: str, device: str, svdvals: bool, split: list[str], extra: list[str]) -> Measurer:
    """Raises ConfigError for what cannot be asked."""
    from rankd.checkpoint import analyze_file
    from rankd.config import ConfigError
    from rankd.executors import choose_devices, settings_of
    from rankd.plan import MeasureConfig

    rules = dict(rule.partition("=")[::2] for rule in split)
    method: Any = "svdvals" if svdvals else "auto"
    asked: Any = "exact" if svdvals and tier == "auto" else tier
    try:
        config = MeasureConfig(tier=asked, method=method, split=rules, metrics=tuple(extra))
    except ValueError as error:
        raise ConfigError(str(error)) from None
    settings, chosen = settings_of(config), _one_device(choose_devices, device)
    return lambda file, on_skip: analyze_file(file, on_skip, tier=config.tier, settings=settings, device=chosen)


def _one_device(choose: Callable[[str], list[Any]], name: str) -> Any:
    from rankd.config import DEVICES, ConfigError

    if not re.fullmatch(DEVICES, name) or "," in name:
        raise ConfigError(f"device={name!r}: expected auto, cpu or cuda:N")
    return choose(name)[0]


def _print_rows(file: Path, measure: Measurer) -> int:
    """Prints JSON rows; returns how many of them are non-finite or all zero."""
    num_problems = 0
    for measurement in measure(file, None):
        num_problems += not measurement.finite or measurement.zero
        print_json(measurement.to_json())
    return num_problems


def _print_table(file: Path, measure: Measurer) -> int:
    """The same for people, with what was left out and why."""
    from rankd.records import METRIC_NAMES

    left_out: Counter[str] = Counter()
    measurements = list(measure(file, lambda _, reason: left_out.update([reason])))
    asked = list(dict.fromkeys(name for m in measurements for name in m.metrics if name not in METRIC_NAMES))
    rows = [
        [escape(file.name), "shape", *COLUMNS, *asked, "note"],
        *(_row(m, (*COLUMNS, *asked)) for m in measurements),
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:-1], widths[1:-1], strict=True))]
        print("  ".join([*cells, row[-1]]).rstrip())
    for reason, count in left_out.items():
        print(f"left out: {count} tensor{'s' * (count > 1)} ({escape(reason)})")
    return sum(not m.finite or m.zero for m in measurements)


def _row(measurement: Measurement, columns: tuple[str, ...]) -> list[str]:
    cells = [_cell(measurement, column) for column in columns]
    row, notes = measurement.to_json(), list[str]()
    if measurement.zero or not measurement.finite:
        notes.append("all zero" if measurement.zero else "non-finite")
    elif 0 in measurement.shape:
        notes.append("empty")
    elif measurement.tier != "exact":
        notes.append(measurement.tier)
    if row.get("inside_noise"):
        notes.append("inside the noise of its dtype")
    if zero := row.get("num_zero_parts"):
        notes.append(f"{zero} of {row['experts']['num']} experts all zero")
    if reason := row.get("split_reason"):
        notes.append(str(reason))
    return [escape(measurement.layer), " x ".join(map(str, measurement.shape)), *cells, escape("; ".join(notes))]


def _cell(measurement: Measurement, metric: str) -> str:
    value, bar = measurement.metrics.get(metric), measurement.bar(metric)
    if value is None:
        return "-"
    if bar is None or bar[1] - bar[0] < 1e-3 * abs(value):
        return f"{value:.4g}"
    return f"{value:.4g} [{bar[0]:.4g}, {bar[1]:.4g}]"
