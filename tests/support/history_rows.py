"""What tests look for in a history file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Look = Callable[..., list[Any]]
Open = Callable[..., Any]


def numbers(look: Look) -> list[int]:
    return [n for (n,) in look("SELECT n FROM measurement ORDER BY n")]
