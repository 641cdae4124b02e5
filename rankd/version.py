"""The version, for those who ask for it before anything heavy is imported."""

from __future__ import annotations


def version_line() -> str:
    """`rankd X.Y.Z`, of the installed distribution."""
    from importlib.metadata import version

    return f"rankd {version('rankd')}"
