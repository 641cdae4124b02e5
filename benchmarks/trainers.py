"""Many trainers at once on one daemon with a history: is each served alike, and is memory within its bound?

    python benchmarks/trainers.py [--trainers N] [--seconds S]

Each trainer is a process with a run and a client of its own that pushes small layers at a fixed pace. A run's rate is
what was recorded of it between the moment when all had connected and the end. The daemon runs with limits small enough
to mean something. Prints one JSON line a row, and exits with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import _history as history
from _children import CONNECT_SECONDS, FLUSH_SECONDS, Child, train
from _daemon import Daemon
from _report import Report
from _state import num_measurements

MIB = 1 << 20
CHUNK_BYTES = 4 * MIB
LIMITS = {
    "chunk_bytes": CHUNK_BYTES,
    "credit_bytes": CHUNK_BYTES,
    "max_layer_bytes": 16 * MIB,
    "max_assembly_bytes": 32 * MIB,
    "max_mailbox_bytes": 32 * MIB,
    "max_recent_alerts": 2000,
    "max_recent_measurements": 4000,
}
EVENT_BYTES = 8 << 10
"""A recent event: a map of 20 keys as Python holds it, 3 to 5 kB."""

LAYER_BYTES = 48 << 10
"""A layer's detectors: three, of at most some hundred readings each."""

HISTORY_BYTES = 64 * MIB
"""SQLite's cache, and the entries that wait for a commit: some seconds of them."""

SAMPLE_SECONDS = 1.0


def limits_of(num_trainers: int) -> dict[str, int]:
    return {**LIMITS, "total_credit_bytes": (num_trainers + 4) * CHUNK_BYTES, "max_runs": num_trainers + 4}


def toml_of(limits: dict[str, int]) -> str:
    return "\n".join(["[limits]", *(f"{key} = {value}" for key, value in limits.items())])


def bound_parts(limits: dict[str, int], idle_bytes: int, num_layers: int) -> dict[str, int]:
    """What the daemon may hold at worst with these limits, in bytes."""
    events = limits["max_recent_alerts"] + limits["max_recent_measurements"]
    return {
        "idle": idle_bytes,
        "total_credit": limits["total_credit_bytes"],
        "assembly": limits["max_assembly_bytes"],
        "mailbox": limits["max_mailbox_bytes"],
        "recent_events": events * EVENT_BYTES,
        "layers": num_layers * LAYER_BYTES,
        "history": HISTORY_BYTES,
    }


def serve_all(daemon: Daemon, children: list[Child], seconds: float) -> tuple[dict[str, float], list[dict[str, Any]]]:
    """Each run's recorded measurements a second, and what the trainers say at the end."""
    said = [child.hear(CONNECT_SECONDS) for child in children]
    if set(said) != {"connected"}:
        raise RuntimeError(f"{said.count('not connected')} of {len(said)} trainers found no daemon")
    before, started = num_measurements(daemon.url), time.monotonic()
    while (left := seconds - (time.monotonic() - started)) > 0:
        time.sleep(min(left, SAMPLE_SECONDS))
        daemon.check()
    after, took = num_measurements(daemon.url), time.monotonic() - started
    for child in children:
        child.pipe.send("stop")
    outcomes = [child.hear(FLUSH_SECONDS + 30) for child in children]
    return {run: (after[run] - before.get(run, 0)) / took for run in after}, outcomes


def judge(report: Report, rates: dict[str, float], outcomes: list[dict[str, Any]], expected: int) -> None:
    per_second = sorted([*rates.values(), *[0.0] * (expected - len(rates))])
    median = statistics.median(per_second)
    more = {"slowest": round(per_second[0], 3), "median": round(median, 3), "fastest": round(per_second[-1], 3)}
    total = round(sum(per_second), 1)
    share = per_second[0] / median if median else 0.0
    report.row("slowest_over_median", round(share, 3), 0.5, "ratio", at_least=True, **more, total=total)
    faults = {
        "errors": sum(outcome["num_errors"] for outcome in outcomes),
        "not_connected": sum(not outcome["connected"] for outcome in outcomes),
        "not_flushed": sum(not outcome["flushed"] for outcome in outcomes),
    }
    slowest = max(outcome["slowest_push_seconds"] for outcome in outcomes)
    pushes = sum(outcome["num_pushes"] for outcome in outcomes)
    report.row("trainer_errors", sum(faults.values()), 0, "errors", **faults, pushes=pushes, slowest_push=slowest)


def judge_history(report: Report, daemon: Daemon, counted: dict[str, int]) -> None:
    """What the daemon counted is what is on disk."""
    on_disk = {row["run"]: row["num_measurements"] for row in history.runs(daemon.data)}
    missing = sum(max(0, number - on_disk.get(run, 0)) for run, number in counted.items())
    report.row("measurements_not_on_disk", missing, 0, "measurements", on_disk=sum(on_disk.values()))


def bench(directory: Path, arguments: argparse.Namespace) -> int:
    report = Report()
    limits = limits_of(arguments.trainers)
    daemon = Daemon(directory, toml_of(limits))
    daemon.start()
    children: list[Child] = []
    try:
        daemon.wait_ready()
        idle_bytes = daemon.rss_bytes()
        shape = (arguments.layers, arguments.size, arguments.interval)
        names = [f"trainer-{i:02}" for i in range(arguments.trainers)]
        children += [Child(train, daemon.url, name, *shape) for name in names]
        rates, outcomes = serve_all(daemon, children, arguments.seconds)
        peak_bytes, counted = daemon.peak_rss_bytes(), num_measurements(daemon.url)
        for child in children:
            child.end()
        stopped = daemon.stop()
    finally:
        daemon.close()
    judge(report, rates, outcomes, arguments.trainers)
    parts = bound_parts(limits, idle_bytes, arguments.trainers * arguments.layers)
    report.row("peak_rss", peak_bytes, sum(parts.values()), "bytes", parts=parts)
    judge_history(report, daemon, counted)
    report.row("daemon_exit_code", stopped, 0, "code")
    return report.exit_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trainers", type=int, default=16, metavar="N", help="64 is the full form")
    parser.add_argument("--seconds", type=float, default=20.0, metavar="S", help="300 is the full form")
    parser.add_argument("--layers", type=int, default=8, metavar="N", help="of each")
    parser.add_argument("--size", type=int, default=32, metavar="N", help="rows and columns of a layer")
    parser.add_argument("--interval", type=float, default=0.5, metavar="S", help="from push to push")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        code = bench(Path(directory), arguments)
    sys.exit(code)


if __name__ == "__main__":
    main()
