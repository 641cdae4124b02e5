"""Does a stuck subscriber slow down the others? The delay from publishing to receiving, with and without stuck ones.

    python benchmarks/subscribers.py [--subscribers N] [--stuck N] [--windows N] [--window-seconds S]

One trainer pushes at a fixed pace, and readers in a few processes note, for each measurement, how old it is (`time` in
its body against this host's clock) when they receive it. Windows without and with stuck subscribers take turns in one
run: half of the stuck ones are raw SUB sockets that nobody reads, half are a stopped process. The first half of each
window, in which their queues fill, does not count. `ratio` is the median p99 of the windows with stuck subscribers over
that of those without, `noise` the largest over the smallest p99 of those without, which is what the ratio is held
against. Prints one JSON line a row, and exits with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from _children import CONNECT_SECONDS, Child, connect_and_never_read, read, train
from _daemon import Daemon
from _report import Report

from rankd_client.endpoints import endpoints_of

NUM_READING_PROCESSES = 4
MIN_NOISE = 1.25
"""A ratio of two p99 is not known better than this, however well a few windows happen to agree."""

Window = tuple[float, float, bool]
"""Start and end of what counts, as time.time() has it; whether there were stuck subscribers."""


class Stuck:
    """`number` subscribers that take nothing."""

    def __init__(self, address: str, number: int) -> None:
        halves = (number // 2, number - number // 2)
        self._children = [Child(connect_and_never_read, address, half) for half in halves if half]
        for child in self._children:
            child.hear(CONNECT_SECONDS)
        os.kill(self._children[-1].process.pid or 0, signal.SIGSTOP)

    def kill(self) -> None:
        for child in self._children:
            child.kill()


def run_windows(daemon: Daemon, num_windows: int, seconds: float, num_stuck: int) -> list[Window]:
    """Without, with, without, with, …, without: one more without than with."""
    address = endpoints_of(daemon.url).alerts
    windows: list[Window] = []
    for number in range(num_windows | 1):
        stuck = Stuck(address, num_stuck) if number % 2 else None
        try:
            started = time.time()
            time.sleep(seconds)
            windows.append((started + seconds / 2, time.time(), stuck is not None))
        finally:
            if stuck is not None:  # one that is stopped would outlive us
                stuck.kill()
        daemon.check()
    return windows


def quantiles_of(delays: list[tuple[float, float]], window: Window) -> tuple[int, float, float]:
    """How many were received of what was published in the window, and the p50 and p99 of their delays in seconds."""
    start, end, _ = window
    inside = [delay for published, delay in delays if start <= published < end]
    if len(inside) < 100:
        raise RuntimeError(f"{len(inside)} items in a window; expected at least 100")
    percentiles = statistics.quantiles(inside, n=100)
    return len(inside), percentiles[49], percentiles[98]


def judge(report: Report, delays: list[tuple[float, float]], windows: list[Window], num_readers: int) -> None:
    found = [(window[2], *quantiles_of(delays, window)) for window in windows]
    p50 = {stuck: [middle for with_stuck, _, middle, _ in found if with_stuck == stuck] for stuck in (False, True)}
    p99 = {stuck: [high for with_stuck, _, _, high in found if with_stuck == stuck] for stuck in (False, True)}
    without, with_stuck = statistics.median(p99[False]), statistics.median(p99[True])
    noise = max(p99[False]) / min(p99[False])
    more: dict[str, Any] = {
        "p50_without": round(statistics.median(p50[False]), 5),
        "p50_with": round(statistics.median(p50[True]), 5),
        "p99_without": [round(high, 5) for high in p99[False]],
        "p99_with": [round(high, 5) for high in p99[True]],
        "noise": round(noise, 3),
    }
    limit = round(max(noise, MIN_NOISE), 3)
    report.row("p99_ratio", round(with_stuck / without, 3), limit, "ratio", **more)
    share = min(number for _, number, _, _ in found) / max(number for _, number, _, _ in found)
    items = [number for _, number, _, _ in found]
    report.row("items_fewest_over_most", round(share, 3), 0.8, "ratio", at_least=True, items=items, readers=num_readers)


def bench(directory: Path, arguments: argparse.Namespace) -> int:
    report = Report()
    num_readers = arguments.subscribers - arguments.stuck
    daemon = Daemon(directory)
    daemon.start()
    try:
        daemon.wait_ready()
        shares = [num_readers // NUM_READING_PROCESSES] * NUM_READING_PROCESSES
        shares[0] += num_readers - sum(shares)
        readers = [Child(read, daemon.url, share, ("measurement",)) for share in shares if share]
        trainer = Child(train, daemon.url, "steady", arguments.layers, 16, arguments.interval)
        for child in (*readers, trainer):
            child.hear(CONNECT_SECONDS)
        windows = run_windows(daemon, arguments.windows, arguments.window_seconds, arguments.stuck)
        trainer.pipe.send("stop")
        trained = trainer.hear(CONNECT_SECONDS)
        for child in readers:
            child.pipe.send("stop")
        results = [child.hear(CONNECT_SECONDS) for child in readers]
        stopped = daemon.stop()
    finally:
        daemon.close()
    judge(report, [delay for delays, _ in results for delay in delays], windows, num_readers)
    report.row("gaps", sum(gaps for _, gaps in results), 0, "gaps")
    report.row("trainer_errors", trained["num_errors"], 0, "errors", trainer=trained)
    report.row("daemon_exit_code", stopped, 0, "code")
    return report.exit_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--subscribers", type=int, default=50, metavar="N", help="the stuck ones included")
    parser.add_argument("--stuck", type=int, default=10, metavar="N", help="1 or more")
    parser.add_argument("--windows", type=int, default=3, metavar="N", help="an odd number; 7 is the full form")
    parser.add_argument("--window-seconds", type=float, default=10.0, metavar="S", help="40 is the full form")
    parser.add_argument("--layers", type=int, default=20, metavar="N", help="measurements in a push")
    parser.add_argument("--interval", type=float, default=0.2, metavar="S", help="from push to push")
    arguments = parser.parse_args()
    if not 0 < arguments.stuck < arguments.subscribers:
        parser.error(f"--stuck is {arguments.stuck}; expected at least 1 and fewer than --subscribers")
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        code = bench(Path(directory), arguments)
    sys.exit(code)


if __name__ == "__main__":
    main()
