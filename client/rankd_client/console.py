"""What the client itself has to say on stderr, outside of logging: the line at the start, and alerts."""

from __future__ import annotations

import contextlib
import sys


def say(line: str) -> None:
    """One line on stderr. A closed or broken stderr is not the training loop's problem."""
    with contextlib.suppress(Exception):
        print(f"rankd: {line}", file=sys.stderr, flush=True)


def show_bytes(num_bytes: int) -> str:
    """Decimal units, as disks and networks are sold: `112 MB`."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= size:
            amount = num_bytes / size
            return f"{amount:.1f} {unit}" if amount < 10 else f"{amount:.0f} {unit}"
    return f"{num_bytes} bytes"
