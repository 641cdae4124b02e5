"""Runs, subscribers and daemons come and go: do memory and open files stay where they are?

    python benchmarks/soak.py [--minutes M]

Two daemons with the same churn. *steady* is never ended; *killed* is killed with SIGKILL again and again and started at
once on its data. New runs push for a while and then close, are killed, or just stop talking; subscribers read for a
while and then leave, are killed, or are stopped and stay so until they are killed. All rings are small, so that what
fills them fills them in the first third of the time, which is warm-up. What is judged:

* memory of *steady*: the median over the last third may be 5 % and 10 MB above that over the second third;
* memory of *killed* at the end of its lives: the median over the last third against the second third alike;
* open files of *steady* when everybody has left, against the same after the first run and subscriber had left.

Prints one JSON line a row, and exits with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _churn import Churn
from _daemon import Daemon
from _report import Report

MIB = 1 << 20
CONFIG = """
[limits]
max_runs = 48
run_idle_seconds = 20.0
max_recent_alerts = 300
max_recent_measurements = 1500
peer_timeout_seconds = 10.0
max_layer_bytes = 16777216
max_assembly_bytes = 33554432
max_mailbox_bytes = 33554432
"""
TICK_SECONDS = 0.5
GROWTH, GROWTH_BYTES = 1.05, 10 * MIB
SPARE_FILES = 8
"""Connections of the history that are opened when they are first needed and stay."""

LEAVE_SECONDS = 60.0
"""For the daemon to notice that everybody has gone."""


@dataclass
class Samples:
    """(share of the time that has passed, value) of one daemon."""

    rss_bytes: list[tuple[float, int]] = field(default_factory=list)
    open_files: list[tuple[float, int]] = field(default_factory=list)

    def take(self, daemon: Daemon, share: float) -> None:
        self.rss_bytes.append((share, daemon.rss_bytes()))
        self.open_files.append((share, daemon.num_open_files()))


def thirds(samples: list[tuple[float, int]]) -> list[float]:
    """The medians of the three thirds of the time; of a third without a sample, that of the one before."""
    medians: list[float] = []
    for third in range(3):
        values = [value for share, value in samples if third <= 3 * share < third + 1]
        medians.append(statistics.median(values) if values else medians[-1] if medians else 0.0)
    return medians


def settle_files(daemon: Daemon, wanted: int) -> int:
    """Open files, once they are as few as `wanted` or everybody has had the time to leave."""
    deadline = time.monotonic() + LEAVE_SECONDS
    while (number := daemon.num_open_files()) > wanted and time.monotonic() < deadline:
        time.sleep(0.5)
    return number


def first_visit(daemon: Daemon, churn: Churn) -> int:
    """Open files after one run and one subscriber have come and gone."""
    before = daemon.num_open_files()
    churn.visit(daemon.url)
    return settle_files(daemon, before + SPARE_FILES)


class Soak:
    """Both daemons, and what was seen of them."""

    def __init__(self, directory: Path, arguments: argparse.Namespace) -> None:
        self.daemons = {}
        for name in ("steady", "killed"):
            (directory / name).mkdir()
            self.daemons[name] = Daemon(directory / name, CONFIG)
        self.samples = Samples()
        self.ends_of_lives: list[tuple[float, int]] = []
        self.generator = random.Random(arguments.seed)
        self.churn = Churn(self.generator, arguments.runs, arguments.readers, arguments.life_seconds)
        self.seconds = 60.0 * arguments.minutes
        self.kill_seconds: float = arguments.kill_seconds

    def start(self) -> int:
        """Open files of *steady* after its first visitors."""
        for daemon in self.daemons.values():
            daemon.start()
            daemon.wait_ready()
        return first_visit(self.daemons["steady"], self.churn)

    def run(self) -> None:
        started = time.monotonic()
        kill_at = self._next_kill(started)
        steady, killed = self.daemons["steady"], self.daemons["killed"]
        while (now := time.monotonic()) < started + self.seconds:
            share = (now - started) / self.seconds
            steady.check()
            self.samples.take(steady, share)
            if now >= kill_at:
                self.ends_of_lives.append((share, killed.rss_bytes()))
                killed.kill()
                killed.start()
                kill_at = self._next_kill(now)
            else:
                killed.check()
            self.churn.tick(now, [daemon.url for daemon in self.daemons.values()])
            time.sleep(TICK_SECONDS)

    def _next_kill(self, now: float) -> float:
        """Lives differ little in length, so that their ends can be compared."""
        return now + self.kill_seconds * self.generator.uniform(0.9, 1.1)


def judge(report: Report, soak: Soak, idle_files: int, files_at_end: int) -> None:
    for name, samples in (("steady", soak.samples.rss_bytes), ("killed", soak.ends_of_lives)):
        medians = thirds(samples)
        limit = round(GROWTH * medians[1] + GROWTH_BYTES)
        more: dict[str, Any] = {"thirds": [round(median) for median in medians], "num_samples": len(samples)}
        report.row(f"rss_of_{name}", round(medians[2]), limit, "bytes", **more)
    num_files = [round(median) for median in thirds(soak.samples.open_files)]
    report.row("open_files_when_all_have_left", files_at_end, idle_files + SPARE_FILES, "files", thirds=num_files)
    counts: dict[str, Any] = soak.churn.counts
    report.row("trainer_errors", counts["trainer_errors"], 0, "errors", **counts, kills=len(soak.ends_of_lives))


def bench(directory: Path, arguments: argparse.Namespace) -> int:
    report = Report()
    soak = Soak(directory, arguments)
    try:
        idle_files = soak.start()
        soak.run()
        soak.churn.end()
        files_at_end = settle_files(soak.daemons["steady"], idle_files)
        soak.daemons["killed"].wait_ready()
        codes = [daemon.stop() for daemon in soak.daemons.values()]
    finally:
        soak.churn.kill()
        for daemon in soak.daemons.values():
            daemon.close()
    judge(report, soak, idle_files, files_at_end)
    report.row("daemon_exit_codes", max(codes), 0, "code")
    return report.exit_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.5, metavar="M", help="30 is the full form")
    parser.add_argument("--runs", type=int, default=6, metavar="N", help="trainers at any time")
    parser.add_argument("--readers", type=int, default=6, metavar="N", help="subscribers at any time")
    parser.add_argument("--life-seconds", type=float, default=8.0, metavar="S", help="mean of a run or subscriber")
    parser.add_argument("--kill-seconds", type=float, default=6.0, metavar="S", help="180 is the full form")
    parser.add_argument("--seed", type=int, default=0, help="of who comes, and of how they go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        code = bench(Path(directory), arguments)
    sys.exit(code)


if __name__ == "__main__":
    main()
