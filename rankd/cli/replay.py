"""`rankd replay`: the rules over recorded measurements, for tuning them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fnmatch import fnmatchcase
from io import BufferedIOBase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import tomllib
import typer

from rankd.cli.common import PROBLEM, WRONG_USE, discard_stdout, leave, print_json, severity_filter
from rankd.cli.history import Data, find_data, find_run, find_settings, open_history
from rankd_client.text import alert_line, escape

if TYPE_CHECKING:
    from rankd.detectors import DetectConfig
    from rankd.records import Alert, Measurement
    from rankd.replay import BadRowError
    from rankd.store.reader import Reader

STATES = ("firing", "resolved", "rebased")


def replay(
    sources: Annotated[
        list[str], typer.Argument(metavar="FILE…|RUN", help=".jsonl, .jsonl.gz, - (stdin), or a run in the history.")
    ],
    data: Data = None,
    config: Annotated[
        str | None,
        typer.Option(
            envvar="RANKD_CONFIG",
            help='TOML file, of which the table \\[detect] is taken, or "off".  '
            "\\[default: the one that `rankd serve` reads]",
        ),
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="A setting of \\[detect], before the file's; may be repeated."),
    ] = None,
    ema_severity: Annotated[
        str | None, typer.Option(help="Severity of the classic EMA rule, as with `rankd serve`: --set ema=… in short.")
    ] = None,
    run: Annotated[list[str] | None, typer.Option(help="Only runs like this glob; may be repeated.")] = None,
    layer: Annotated[list[str] | None, typer.Option(help="Only layers like this glob; may be repeated.")] = None,
    severity: Annotated[str, typer.Option(help="Nothing below: info, warning or critical.")] = "info",
    summary: Annotated[bool, typer.Option("--summary", help="In the end, how often each rule spoke, by run.")] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="Go on after a bad line; exits with 1.")] = False,
    json_lines: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Run the rules over recorded measurements and print the alerts, as the daemon would have with these settings."""
    from rankd.replay import BadRowError
    from rankd.replay import replay as judge

    concerns = severity_filter(severity)
    detect = _read_settings(config, [*(changes or []), *([f"ema={ema_severity}"] if ema_severity else [])])
    counts = _Counts()
    with ExitStack() as opened:
        inputs = _Inputs(data, run or [], layer or [], skip_bad, opened)
        inputs.resolve(sources)
        try:
            for alert in judge(inputs, detect, inputs.stream_ids):
                row = alert.to_json()
                if concerns(row):
                    counts.add(alert)
                    print_json(row) if json_lines else print(alert_line(row), flush=True)
            if summary:
                counts.show(inputs.num_rows, json_lines)
        except BadRowError as error:
            leave(escape(str(error)), WRONG_USE)
        except KeyboardInterrupt:
            pass
        except BrokenPipeError:
            discard_stdout()
    if inputs.num_bad:
        leave(f"{inputs.num_bad} bad lines skipped, the first: {escape(inputs.first_bad)}", PROBLEM)


class _Inputs:
    """The measurements of all sources, one after the other, of the wanted runs and layers."""

    def __init__(
        self, data: Path | None, runs: list[str], layers: list[str], skip_bad: bool, opened: ExitStack
    ) -> None:
        self._data = data
        self._opened = opened
        self._reader: Reader | None = None
        self._runs = runs
        self._layers = layers
        self._wanted: dict[tuple[str, str], bool] = {}
        self._skip_bad = skip_bad
        self._sources: list[Callable[[], Iterator[Measurement]]] = []
        self.stream_ids: dict[str, str] = {}
        self.num_rows: Counter[str] = Counter()
        self.num_bad = 0
        self.first_bad = ""

    def resolve(self, sources: list[str]) -> None:
        """Leave with the first that is neither a file nor a run."""
        for source in sources:
            if source == "-":
                self._sources.append(self._stdin)
            elif _is_file(Path(source)):
                self._sources.append(self._file(Path(source)))
            elif (data := find_data(self._data)) is not None:
                self._sources.append(self._history(data, source))
            elif _is_directory(Path(source)):
                leave(f"{escape(repr(source))}: Is a directory; expected a file of JSON lines", WRONG_USE)
            else:
                expected = "expected a file, -, or with --data DIR a run in the history"
                leave(f"{escape(repr(source))}: no such file; {expected}", WRONG_USE)

    def __iter__(self) -> Iterator[Measurement]:
        for source in self._sources:
            for measurement in source():
                key = (measurement.run, measurement.layer)
                if key not in self._wanted:
                    self._wanted[key] = _matches(measurement.run, self._runs) and _matches(
                        measurement.layer, self._layers
                    )
                if self._wanted[key]:
                    self.num_rows[measurement.run] += 1
                    yield measurement

    def _stdin(self) -> Iterator[Measurement]:
        from rankd.replay import read_rows

        return read_rows(cast(BufferedIOBase, sys.stdin.buffer), "-", self._on_bad)

    def _file(self, path: Path) -> Callable[[], Iterator[Measurement]]:
        from rankd.replay import read_file

        try:
            path.open("rb").close()
        except OSError as error:
            leave(f"{escape(repr(str(path)))}: {error.strerror}; expected a file of JSON lines", WRONG_USE)
        return lambda: read_file(path, self._on_bad)

    def _history(self, data: Path, run: str) -> Callable[[], Iterator[Measurement]]:
        reader = self._reader = self._reader or self._opened.enter_context(open_history(data))
        find_run(reader, run, f"{escape(repr(run))}: no such file, and ")
        first_n = reader.first_n("measurement", run)
        self.stream_ids[run] = reader.stream_id
        if first_n > 1:
            gone = f"its first {first_n - 1} measurements are no longer in the history; alerts may differ"
            print(f"rankd: {escape(run)}: {gone}", file=sys.stderr)
        return lambda: (measurement for _, measurement in reader.measurements(run, layers=self._layers))

    def _on_bad(self, error: BadRowError) -> None:
        if not self._skip_bad:
            raise error
        self.num_bad += 1
        self.first_bad = self.first_bad or str(error)


class _Counts:
    """How often each rule spoke in each run."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[str, Counter[str]]] = {}

    def add(self, alert: Alert) -> None:
        self._counts.setdefault(alert.run, {}).setdefault(alert.rule, Counter())[alert.state] += 1

    def show(self, num_rows: Counter[str], json_lines: bool) -> None:
        for run, rows in num_rows.items():
            rules = {
                rule: {state: counts[state] for state in STATES}
                for rule, counts in sorted(self._counts.get(run, {}).items())
            }
            if json_lines:
                print_json({"summary": {"run": run, "num_measurements": rows, "rules": rules}})
            else:
                print(f"{escape(run)}: {rows} measurements, {_in_words(rules)}", flush=True)


def _in_words(rules: dict[str, dict[str, int]]) -> str:
    spoken = [
        f"{rule} {', '.join(f'{count} {state}' for state, count in counts.items() if count)}"
        for rule, counts in rules.items()
    ]
    return "; ".join(spoken) or "no alerts"


def _is_file(path: Path) -> bool:
    """Whether `path` is meant, not a run: one may be called like a directory, or have a name too long for a file."""
    try:
        return path.exists() and not path.is_dir()
    except OSError:
        return False


def _is_directory(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:
        return False


def _matches(name: str, globs: list[str]) -> bool:
    return not globs or any(fnmatchcase(name, glob) for glob in globs)


def _read_settings(given: str | None, changes: list[str]) -> DetectConfig:
    """The table [detect] of the settings file, changed. Leaves with the first that is wrong."""
    from rankd.config import ConfigError, detect_config

    file, settings = find_settings(given)
    table = settings.get("detect", {})
    if not isinstance(table, dict):
        leave(f"config={str(file)!r}: detect={escape(repr(table))}; expected a table", WRONG_USE)
    if table and given is None and file is not None:
        print(f"rankd: [detect] of {escape(str(file.resolve()), 500)}", file=sys.stderr)
    try:
        return detect_config({**table, **dict(map(_read_change, changes))})
    except ConfigError as error:
        leave(escape(str(error)), WRONG_USE)


def _read_change(change: str) -> tuple[str, Any]:
    """KEY=VALUE with a value of TOML. What is none is a text: shells take the quotes away."""
    key, equals, text = change.partition("=")
    if not equals:
        leave(f"--set {escape(repr(change))}: expected KEY=VALUE", WRONG_USE)
    try:
        content = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        content = {}
    return key.strip(), content["value"] if content.keys() == {"value"} else text
