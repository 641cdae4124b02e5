"""A client pushes one model a step: a second one is told of, since nothing of it would ever go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankd_client.console import say


class OneModel:
    """Remembers which one went last, but keeps nothing of it alive."""

    def __init__(self) -> None:
        self._mark: int | None = None
        self._is_told = False

    def pushed(self, model: Any) -> None:
        self._mark = _mark(model)

    def not_due(self, model: Any, step: int) -> None:
        """`model`, as one went at `step` already."""
        if not self._is_told and _mark(model) != self._mark:
            self._is_told = True
            say(
                f"another model at step {step} is not pushed, as one was at that step: push one mapping of both, "
                "with names of their own, or give each a client of its own"
            )


def _mark(model: Any) -> int:
    """By which a model is known again; a mapping by its names, as it may be made anew for each push, in one place."""
    return hash(frozenset(model)) if isinstance(model, Mapping) else id(model)
