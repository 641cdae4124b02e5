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

    def ratio(self, name: str, ours: float, rival: float, limit: float, unit: str, **more: Any) -> None:
        """`ours` over `rival`, measured side by side, is to be at most `limit`. `more` says what the rival is."""
        ratio = ours / rival
        if ratio > limit:
            self.missed.append(name)
        row = {"name": name, "unit": unit, "ours": ours, "rival": rival, "ratio": ratio, "limit": limit}
        rounded = {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()}
        more = {"ok": ratio <= limit, **more, "machine": MACHINE}
        print(json.dumps({**rounded, **more}, allow_nan=False, ensure_ascii=False), flush=True)

    @property
    def exit_code(self) -> int:
        return 1 if self.missed else 0
