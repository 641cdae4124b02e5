"""Whose a run is, by its full name."""

from __future__ import annotations


def namespace_of(run: str) -> str:
    """The namespace of a run's full name: ns of `@ns/run`, "" of any other."""
    return run[1:].partition("/")[0] if run.startswith("@") and "/" in run else ""
