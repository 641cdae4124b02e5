"""What the verbs share: leaving with a word, and JSON lines."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import typer

PROBLEM = 1
WRONG_USE = 2


def leave(message: str, code: int) -> NoReturn:
    """Say why on stderr and exit."""
    print(f"rankd: {message}", file=sys.stderr)
    raise typer.Exit(code)


def print_json(row: Mapping[str, Any]) -> None:
    """One object on one line of stdout, at once. NaN and Infinity, which JSON has not, become null."""
    print(json.dumps(_finite(row), allow_nan=False, default=str), flush=True)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
