"""`rankd` and `python -m rankd`. The version is answered before anything heavy is imported."""

from __future__ import annotations

import sys


def print_version() -> None:
    from importlib.metadata import version

    print(f"rankd {version('rankd')}")


def main() -> None:
    """The console script."""
    if sys.argv[1:] == ["--version"]:
        print_version()
        return
    from rankd.cli import app

    app(prog_name="rankd")


if __name__ == "__main__":
    main()
