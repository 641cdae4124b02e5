"""What torch.compile's tracer, Dynamo, must leave alone: traced, a copy would become part of the user's graphs, and be
compiled anew whenever a number in it changes."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def untraced(function: Callable[P, R]) -> Callable[P, R]:
    """`function`, run as it is by whoever is being compiled. Dynamo is asked only where it is loaded, which takes
    seconds and is not for us to do; until then this costs a look-up."""
    undisturbed: list[Callable[P, R]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not undisturbed:
            disable = getattr(sys.modules.get("torch._dynamo"), "disable", None)
            if disable is None:
                return function(*args, **kwargs)
            undisturbed.append(disable(function))
        return undisturbed[0](*args, **kwargs)

    return call
