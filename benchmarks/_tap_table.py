"""Rows of tap_gpu.py on standard input, as the README's two tables on standard output."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]


def percent(share: float) -> str:
    return f"{100 * share:+.2f} %" if abs(share) < 0.1 else f"{100 * share:+.0f} %"


def size(num_bytes: int) -> str:
    return "values only" if num_bytes < 1 << 20 else f"{num_bytes / 1e6:.0f} MB"


def milliseconds(value: float) -> str:
    return f"{value:,.1f}" if value < 100 else f"{value:,.0f}"


def way(row: Row) -> str:
    low, high = row["loss_share_interval"]
    loss = f"{percent(row['loss_share'])} ({percent(low)} … {percent(high)})"
    if "loss_share_at_default_computed" in row:
        loss += f"; every {row['default_every']:,}, computed: {percent(row['loss_share_at_default_computed'])}"
    blocked = f"{milliseconds(row['blocked_p50_ms'])} / {milliseconds(row['blocked_p99_ms'])} ms"
    memory = f"{row['extra_device_bytes'] / 1e6:.0f} MB"
    cells = (row["way"], str(row["every"]), loss, blocked, size(row["bytes"]), memory)
    return "| " + " | ".join(cells) + " |"


def ways(rows: Sequence[Row]) -> str:
    heads = (
        "way",
        "every, steps",
        "step time (95 %)",
        "host blocked: median / p99",
        "leaves the GPU",
        "more GPU memory",
    )
    return "\n".join(["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|", *map(way, rows)])


def cadences(rows: Sequence[Row]) -> str:
    """A row a way, a column a model: below half a percent from how many steps on, and what it costs at every 100th."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    table = ["| way | " + " | ".join(models) + " |", "|---" * (len(models) + 1) + "|"]
    for name in dict.fromkeys(row["way"] for row in rows):
        of = {row["model"]: row for row in rows if row["way"] == name}
        table.append(f"| {name} | " + " | ".join(_cadence(of[model]) for model in models) + " |")
    return "\n".join(table)


def _cadence(row: Row) -> str:
    mark = "*" if row["computed"] else ""
    least = row["steps_from_which_below_half_a_percent"]
    return f"every {least:,}{mark} ({row['seconds_each_time']:,} s each time)"


def main() -> None:
    rows = [json.loads(line) for line in sys.stdin if line.startswith("{")]
    print(ways([row for row in rows if row["name"] == "way" and "failed" not in row]), "\n")
    print(cadences([row for row in rows if row["name"] == "cadence"]))
    for row in rows:
        if "failed" in row:
            print(f"\nfailed: {row['way']}: {row['failed']}")


if __name__ == "__main__":
    main()
