"""`rankd` and `python -m rankd`. The version is answered before anything heavy is imported."""

from __future__ import annotations

import sys

from rankd.version import version_line


def main() -> None:
    """The console script."""
    if sys.argv[1:] == ["--version"]:
        print(version_line())
        return
    from rankd.cli import app

    app(prog_name="rankd")


if __name__ == "__main__":
    main()
