"""Rows of a benchmark that has limits: one JSON object a line, and an exit code that says whether all were kept."""

from __future__ import annotations

import json
import os
import platform
from typing import Any

MACHINE = {"system": platform.system(), "processor": platform.machine(), "cores": os.cpu_count()}


class Report:
    """Prints rows as they come and remembers whether one missed its limit."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def row(self, name: str, ours: float, limit: float, unit: str, *, at_least: bool = False, **more: Any) -> None:
        """`ours` is to be at most `limit`, or at least that much."""
        kept = ours >= limit if at_least else ours <= limit
        if not kept:
            self.missed.append(name)
        wanted = "at least" if at_least else "at most"
        row = {"name": name, "unit": unit, "ours": ours, "limit": limit, "wanted": wanted, "ok": kept}
        print(json.dumps({**row, **more, "machine": MACHINE}, allow_nan=False), flush=True)

    @property
    def exit_code(self) -> int:
        return 1 if self.missed else 0
