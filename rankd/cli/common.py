"""What the verbs share: leaving with a word, and JSON lines."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

import typer

if TYPE_CHECKING:
    from rankd_client.stream.severity import SeverityFilter

PROBLEM = 1
WRONG_USE = 2

MAX_STEP = (1 << 63) - 1
"""Of the protocol and the history."""


def leave(message: str, code: int) -> NoReturn:
    """Say why on stderr and exit."""
    print(f"rankd: {message}", file=sys.stderr)
    raise typer.Exit(code)


def print_json(row: Mapping[str, Any]) -> None:
    """One object on one line of stdout, at once. NaN and Infinity, which JSON has not, become null."""
    print(json_line(row), flush=True)


def json_line(row: Mapping[str, Any]) -> str:
    """The object without the end of its line; see print_json."""
    try:
        return json.dumps(row, allow_nan=False, default=str)
    except ValueError:
        return json.dumps(_finite(row), allow_nan=False, default=str)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def severity_filter(least: str) -> SeverityFilter:
    """Which alerts to show: those severe enough, and the end (whose severity may be lower) of each that was shown."""
    from rankd_client.stream.severity import SEVERITIES, SeverityFilter

    if least not in SEVERITIES:
        leave(f"--severity {least!r}: expected one of {', '.join(SEVERITIES)}", WRONG_USE)
    return SeverityFilter(least)


def discard_stdout() -> None:
    """After a BrokenPipeError (`rankd tail | head`: the reader has seen enough): what is buffered goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
