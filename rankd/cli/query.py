"""`rankd query`: what was measured in a run, and what was alarmed."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, fields
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankd.cli.common import MAX_STEP, WRONG_USE, leave
from rankd.cli.history import Current, Data, Layers, check_layers, find_run, open_history, until_reader_leaves
from rankd_client.text import alert_line, escape

if TYPE_CHECKING:
    from rankd.records import Measurement
    from rankd.store.reader import Reader

SHOWN = ("stable_rank", "effective_rank", "spectral_norm")
"""In the lines for people, where no --metric says otherwise."""


SPECTRUM = ("run", "layer", "role", "step", "tier", "top", "low", "high", "counts")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What of a run is asked for."""

    run: str
    layers: tuple[str, ...]
    metrics: tuple[str, ...]
    role: str | None
    from_step: int | None
    to_step: int | None
    every: int | None
    current: bool


def query(
    run: Annotated[str, typer.Argument(help="The run's name.")],
    data: Data = None,
    layer: Layers = None,
    metric: Annotated[list[str] | None, typer.Option(help="Only this metric; may be repeated.")] = None,
    role: Annotated[str | None, typer.Option(help="weight, update, gradient or feature.")] = None,
    from_step: Annotated[int | None, typer.Option("--from", min=0, max=MAX_STEP, help="The first step.")] = None,
    to_step: Annotated[int | None, typer.Option("--to", min=0, max=MAX_STEP, help="The last step.")] = None,
    every: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_STEP, help="Of each layer the first row at or after each multiple of N steps."),
    ] = None,
    current: Current = False,
    alerts: Annotated[bool, typer.Option("--alerts", help="Alerts instead, as they were published.")] = False,
    spectra: Annotated[
        bool, typer.Option("--spectra", help="Spectra instead: the largest values, and a histogram.")
    ] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
    csv: Annotated[bool, typer.Option("--csv", help="A header and a line a row, comma-separated.")] = False,
) -> None:
    """Print the measurements of a run, each once, in the order in which they were recorded."""
    wanted = Wanted(run, tuple(layer or ()), tuple(metric or ()), role, from_step, to_step, every, current)
    _check(wanted, alerts, spectra, json_lines and csv)
    with open_history(data) as reader:
        find_run(reader, run)
        check_layers(reader, run, wanted.layers, role)
        _check_metrics(reader, wanted)
        rows = (_alert_rows if alerts else _spectrum_rows if spectra else _measurement_rows)(reader, wanted)
        with until_reader_leaves():
            _print(rows, alerts, spectra, wanted.metrics, json_lines, csv)


def _check(wanted: Wanted, alerts: bool, spectra: bool, two_formats: bool) -> None:
    """Leaves where options do not go together."""
    if two_formats:
        leave("--json and --csv: expected one of them", WRONG_USE)
    if alerts and spectra:
        leave("--alerts and --spectra: expected one of them", WRONG_USE)
    if None not in (wanted.from_step, wanted.to_step) and wanted.from_step > wanted.to_step:  # type: ignore[operator]
        leave(f"--from {wanted.from_step} --to {wanted.to_step}: expected steps in order", WRONG_USE)
    given = {"--metric": wanted.metrics, "--every": wanted.every, "--current": wanted.current, "--role": wanted.role}
    for option in ("--metric", "--every", "--current", "--role"):
        if given[option] and (alerts or (spectra and option != "--role")):
            leave(f"{option} does not go with {'--alerts' if alerts else '--spectra'}", WRONG_USE)


def _check_metrics(reader: Reader, wanted: Wanted) -> None:
    known = reader.metrics(wanted.run)
    for name in wanted.metrics:
        # Exact newest rows have no bars, others nothing that only whole spectra give: older ones may.
        if name not in known and not any(name in row.extra for _, row in reader.measurements(wanted.run)):
            there = ", ".join(escape(metric) for metric in known)
            leave(f"--metric {escape(name)!r}: no such metric; there are {there}", WRONG_USE)


def _measurement_rows(reader: Reader, wanted: Wanted) -> Iterator[dict[str, Any]]:
    from rankd.cli.formats import IDENTIFYING

    keep = (*IDENTIFYING, *wanted.metrics)
    thin = Thin(wanted.every) if wanted.every else None
    for _, measurement in reader.measurements(
        wanted.run,
        layers=wanted.layers,
        role=wanted.role,
        from_step=wanted.from_step,
        to_step=wanted.to_step,
        current=wanted.current,
    ):
        if thin is None or thin.keeps(measurement):
            row = measurement.to_json()
            yield _with_errors(row, keep, wanted.metrics) if wanted.metrics else row


def _with_errors(row: dict[str, Any], keep: Sequence[str], metrics: Sequence[str]) -> dict[str, Any]:
    """The keys of `row` to keep, and what it knows of their errors."""
    errors = ("tier", *(f"{name}_{end}" for name in metrics for end in ("low", "high")))
    return {key: row.get(key) for key in keep} | {key: row[key] for key in errors if key in row}


def _alert_rows(reader: Reader, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """An alert of a whole run concerns every layer, as in `rankd tail`; but it has no step."""
    from rankd_client.stream.filters import Wanted as Filter

    concerns = Filter(layers=wanted.layers or None)
    for body in reader.published_alerts(wanted.run):
        if concerns.layer(body) and _within(body.get("step"), wanted):
            yield body


def _within(step: int | None, wanted: Wanted) -> bool:
    low, high = wanted.from_step, wanted.to_step
    if step is None:
        return low is None and high is None
    return (low is None or low <= step) and (high is None or step <= high)


def _spectrum_rows(reader: Reader, wanted: Wanted) -> Iterator[dict[str, Any]]:
    """`counts`: how many singular values lie in each of as many equal bins of log10 σ between `low` and `high`."""
    from rankd.summary import read_summary

    for layer in reader.layers(wanted.run):
        if wanted.layers and not any(fnmatchcase(layer.name, glob) for glob in wanted.layers):
            continue
        if wanted.role in (None, layer.role):
            key = {"run": wanted.run, "layer": layer.name, "role": layer.role}
            found = reader.summaries(wanted.run, layer.name, layer.role, wanted.from_step, wanted.to_step)
            for _, step, summary, tier in found:
                yield {**key, "step": step, "tier": tier, **asdict(read_summary(summary))}


@dataclass(slots=True)
class Thin:
    """Of each layer the first row at or after each multiple of `every` steps, and every row without a step."""

    every: int
    _last: dict[tuple[str, str], int] = field(default_factory=dict)

    def keeps(self, measurement: Measurement) -> bool:
        if measurement.step is None:
            return True
        key, multiple = (measurement.layer, measurement.role), measurement.step // self.every
        if self._last.get(key) == multiple:
            return False
        self._last[key] = multiple
        return True


def _print(
    rows: Iterable[dict[str, Any]], alerts: bool, spectra: bool, metrics: tuple[str, ...], json_lines: bool, csv: bool
) -> None:
    from rankd.cli.formats import COLUMNS, IDENTIFYING, write_csv, write_json_lines
    from rankd.records import Alert

    if json_lines:
        write_json_lines(rows, sys.stdout)
    elif csv:
        columns = (*IDENTIFYING, *metrics) if metrics else COLUMNS
        if alerts:
            columns = ("schema", *(item.name for item in fields(Alert)))
        write_csv(rows, sys.stdout, SPECTRUM if spectra else columns)
    else:
        for row in rows:
            print(alert_line(row) if alerts else _line(row, ("top",) if spectra else metrics or SHOWN))


def _line(row: dict[str, Any], shown: tuple[str, ...]) -> str:
    role = "" if row["role"] == "weight" else f" ({escape(row['role'])})"
    values = [f"{key}={_number(row.get(key))}{_bar(row, key)}" for key in shown]
    notes = [] if row.get("finite", True) else ["non-finite"]
    if row.get("tier", "exact") != "exact":
        notes.append(f"({escape(row['tier'])})")
    return " ".join([f"step {escape(row['step'])}", f"{escape(row['layer'])}{role}:", *values, *notes])


def _bar(row: dict[str, Any], metric: str) -> str:
    low, high = row.get(f"{metric}_low"), row.get(f"{metric}_high")
    return "" if low is None or high is None else f" [{_number(low)}, {_number(high)}]"


def _number(value: object) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_number, value))
    return f"{value:.4g}" if type(value) is float else escape(value)
