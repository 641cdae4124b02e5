"""Ten times what a daemon can measure: its memory, what it tells of it, and whether the newest is still measured.

    python benchmarks/overload.py [--minutes M] [--trainers N] [--layers N] [--size N] [--times X]

A daemon with small limits measures every snapshot exactly. One trainer pushes so much that both its slots are busy:
that is its own rate. Then all trainers push together, for `--minutes`, `--times` that rate in snapshots and a little
more; they follow it where the machine becomes slower or faster. After 60 % of it one layer loses half of its rank.
Rows: what was pushed over what was measured; resident memory at its peak less that at rest, against what
docs/operations.md promises with these limits; whether every snapshot that came is measured or counted as given up; how
old the newest measured step of a layer ever was, in passes (what all layers once take, in the slowest 10 s), and beside
it the lag that /healthz tells and the one that `rankd doctor` foretells; whether the newest step of each layer is
measured at the end; the alert of the layer that collapsed, and those of others. Prints one JSON line a row, and exits
with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
import threading
import time
import urllib.request
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from _children import CONNECT_SECONDS, FLUSH_SECONDS, Child
from _daemon import Daemon
from _overload_trainer import ARENA_BYTES, COLLAPSED, push_steadily
from _report import Report
from trainers import MIB, bound_parts, limits_of, toml_of

from rankd_client import subscribe

CALIBRATION_INTERVAL = 0.05
MARGIN = 1.3
"""Of pushes: the daemon may become faster from one look to the next."""
COLLAPSE_AT = 0.6
MAX_AGE_PASSES = 4.0
MAX_LAG_PASSES = 3.0
SAMPLE_SECONDS = 1.0
RATE_SECONDS = 10.0
QUIET_SECONDS = 5.0
"""Without a measurement, when all have been heard of."""


def limits_for(arguments: argparse.Namespace) -> dict[str, int]:
    lent = {"max_lent_bytes": arguments.trainers * ARENA_BYTES, "max_lent_bytes_per_connection": ARENA_BYTES}
    mailbox = {"max_mailbox_bytes": arguments.mailbox * MIB, "max_layer_bytes": min(16, arguments.mailbox) * MIB}
    return {**limits_of(arguments.trainers), **mailbox, **lent}


@dataclass
class Heard:
    """What a subscriber hears, with the time of this process's clock."""

    url: str
    measured: dict[tuple[str, str], list[tuple[int, float]]] = field(default_factory=lambda: defaultdict(list))
    alerts: list[tuple[dict[str, Any], float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._items = subscribe(self.url, streams=("alert", "measurement"), timeout=QUIET_SECONDS)
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        for item in self._items:
            now = time.monotonic()
            if "alert_id" in item:
                self.alerts.append((dict(item), now))
            else:
                self.measured[item["run"], item["layer"]].append((item["step"], now))

    def wait(self) -> None:
        """Until nothing more comes."""
        self._thread.join()


@dataclass
class Overload:
    """A daemon, its trainers, and what was seen while they pushed."""

    daemon: Daemon
    num_layers: int
    """Of all trainers."""
    times: float
    children: dict[str, Child] = field(default_factory=dict)
    interval: Any = field(default_factory=lambda: multiprocessing.Value("d", CALIBRATION_INTERVAL, lock=False))
    measured: list[tuple[float, int]] = field(default_factory=list)
    """Time and number so far."""
    lags: list[float] = field(default_factory=list)
    foretold: list[float] = field(default_factory=list)
    rss_bytes: list[int] = field(default_factory=list)

    def ask(self, page: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.daemon.http}/{page}", timeout=30) as reply:
            return dict(json.load(reply))

    def own_rate(self, seconds: float) -> float:
        """Snapshots that the daemon measures in a second, where it always has some: found in so many seconds."""
        first = next(iter(self.children.values()))
        first.pipe.send((1.5 * seconds, None))
        time.sleep(seconds / 4)
        before, began = self.ask("capacity")["num_measured"], time.monotonic()
        time.sleep(seconds)
        told, took = self.ask("capacity"), time.monotonic() - began
        first.hear(60)
        return float((told["num_measured"] - before) / took)

    def rates(self) -> list[float]:
        """Snapshots measured in a second, over each RATE_SECONDS."""
        apart = round(RATE_SECONDS / SAMPLE_SECONDS)
        pairs = zip(self.measured, self.measured[apart:], strict=False)
        return [(number - before) / (now - then) for (then, before), (now, number) in pairs]

    def _keep_pace(self, rate: float) -> None:
        self.interval.value = self.num_layers / (MARGIN * self.times * rate)

    def push(self, own_rate: float, seconds: float) -> dict[str, list[tuple[int, float]]]:
        """All at once, so many times what is being measured; run → step and time of each push."""
        self._keep_pace(own_rate)
        for place, child in enumerate(self.children.values()):
            child.pipe.send((seconds, None if place else COLLAPSE_AT * seconds))
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(SAMPLE_SECONDS)
            self.daemon.check()
            self.lags.append(self.ask("healthz")["lag_seconds"])
            told = self.ask("capacity")
            self.measured.append((time.monotonic(), told["num_measured"]))
            if rates := self.rates()[-1:]:
                self._keep_pace(rates[0])
            rows = [row for namespace in told["namespaces"] for row in namespace["runs"]]
            self.foretold += [row["once_seconds"] / row["granted"] for row in rows if row["granted"]]
            self.rss_bytes.append(self.daemon.rss_bytes())
        return {run: child.hear(60) for run, child in self.children.items()}

    def end(self) -> list[dict[str, Any]]:
        for child in self.children.values():
            child.pipe.send(None)
        return [child.hear(FLUSH_SECONDS + 30) for child in self.children.values()]


def judge_memory(report: Report, overload: Overload, at_rest: int, arguments: argparse.Namespace) -> None:
    num_layers = arguments.trainers * arguments.layers
    parts = bound_parts(limits_for(arguments), 0, num_layers)
    parts["lent"] = limits_for(arguments)["max_lent_bytes"]
    parts["measuring"] = overload.ask("capacity")["num_slots"] * 6 * 8 * arguments.size**2  # float64, Gram and solver
    third = max(1, len(overload.rss_bytes) // 3)
    more: dict[str, Any] = {
        "at_rest": at_rest,
        "thirds": [max(overload.rss_bytes[i * third :][:third]) for i in range(3)],
    }
    grown = overload.daemon.peak_rss_bytes() - at_rest
    report.row("growth_of_rss", grown, sum(parts.values()), "bytes", **more, parts=parts)


def judge_drops(report: Report, health: dict[str, Any], told: dict[str, Any]) -> None:
    """Each that came whole was measured, or is counted as given up."""
    given_up = {name: health.get(name, 0) for name in ("dropped_superseded", "dropped_for_room")}
    missing = health["num_assembled"] - told["num_measured"] - sum(given_up.values()) - told["num_waiting"]
    same = told["num_superseded"] + told["num_dropped"] == sum(given_up.values())
    more: dict[str, Any] = {
        "came": health["num_assembled"],
        "measured": told["num_measured"],
        **given_up,
        "by_run_is_the_same": same,
    }
    report.row("neither_measured_nor_counted", abs(missing), 0, "snapshots", **more)


def ages(heard: list[tuple[int, float]], pushed: list[tuple[int, float]]) -> list[float]:
    """How old a layer's newest measured step was, each time just before the next was heard of, and at the end."""
    at, (began, end) = dict(pushed), (pushed[0][1], pushed[-1][1])
    newest, found = began, []
    for step, heard_at in heard:
        if began <= heard_at <= end:
            found.append(heard_at - newest)
            newest = max(newest, at.get(step, newest))
    return [*found, end - newest]


def judge_ages(
    report: Report, overload: Overload, heard: Heard, pushes: dict[str, Any], rate: float, arguments: argparse.Namespace
) -> None:
    num_layers = arguments.trainers * arguments.layers
    slowest = min([rate, *overload.rates()])
    a_pass = num_layers / slowest
    of_layers = {key: ages(items, pushes[key[0]]) for key, items in heard.measured.items()}
    oldest = max(map(max, of_layers.values()))
    more: dict[str, Any] = {"seconds": round(oldest, 2), "pass_seconds": round(a_pass, 2), "layers": num_layers}
    at_end = round(statistics.median(found[-1] for found in of_layers.values()), 2)
    report.row("oldest_newest", round(oldest / a_pass, 2), MAX_AGE_PASSES, "passes", **more, median_at_end=at_end)
    lag = max(overload.lags)
    foretold = round(statistics.median(overload.foretold), 2) if overload.foretold else None
    more = {"seconds": round(lag, 2), "median": round(statistics.median(overload.lags), 2), "foretold": foretold}
    report.row("lag_told", round(lag / a_pass, 2), MAX_LAG_PASSES, "passes", **more)
    last = {run: items[-1][0] for run, items in pushes.items()}
    missing = [key for key, items in heard.measured.items() if max(step for step, _ in items) < last[key[0]]]
    no_room = max(0, num_layers - arguments.mailbox * MIB // (2 * arguments.size**2))
    report.row("layers_without_their_newest_step", len(missing), no_room, "layers", of=num_layers)


def judge_alerts(report: Report, heard: Heard, pushes: dict[str, Any], seconds: float) -> None:
    run = next(iter(pushes))
    collapsed_at = pushes[run][0][1] + COLLAPSE_AT * seconds
    warnings = [(alert, at) for alert, at in heard.alerts if alert["severity"] != "info"]
    ours = [at - collapsed_at for alert, at in warnings if (alert["run"], alert["layer"]) == (run, COLLAPSED)]
    took = round(min((later for later in ours if later >= 0), default=1e9), 2)
    report.row("collapse_to_alert", took, round((1 - COLLAPSE_AT) * seconds, 1), "s", alerts=len(ours))
    others = [alert for alert, _ in warnings if (alert["run"], alert["layer"]) != (run, COLLAPSED)]
    report.row("alerts_of_others", len(others), 0, "alerts")


def bench(directory: Path, arguments: argparse.Namespace) -> int:
    report, seconds = Report(), 60.0 * arguments.minutes
    daemon = Daemon(directory, f'{toml_of(limits_for(arguments))}\n[measure]\ntier = "exact"\n', http=True)
    daemon.start()
    overload = Overload(daemon, arguments.trainers * arguments.layers, arguments.times)
    try:
        daemon.wait_ready()
        at_rest = daemon.rss_bytes()
        shape = (arguments.layers, arguments.size)
        names = [f"trainer-{i}" for i in range(arguments.trainers)]
        overload.children |= {name: Child(push_steadily, daemon.url, name, *shape, overload.interval) for name in names}
        said = {child.hear(CONNECT_SECONDS) for child in overload.children.values()}
        if said != {"connected"}:
            raise RuntimeError("a trainer found no daemon")
        own_rate = overload.own_rate(arguments.calibrate)
        heard = Heard(daemon.url)
        before = overload.ask("capacity")["num_measured"]
        pushes = overload.push(own_rate, seconds)
        rate = (overload.ask("capacity")["num_measured"] - before) / seconds
        outcomes = overload.end()
        heard.wait()
        pushed = arguments.layers * sum(map(len, pushes.values())) / seconds
        more: dict[str, Any] = {"own_rate": round(own_rate, 1), "pushed": round(pushed, 1), "measured": round(rate, 1)}
        report.row("pushed_over_measured", round(pushed / rate, 1), arguments.times, "ratio", at_least=True, **more)
        judge_memory(report, overload, at_rest, arguments)
        judge_drops(report, overload.ask("healthz"), overload.ask("capacity"))
        judge_ages(report, overload, heard, pushes, rate, arguments)
        judge_alerts(report, heard, pushes, seconds)
        errors = sum(outcome["num_errors"] + (not outcome["flushed"]) for outcome in outcomes)
        report.row("trainer_errors", errors, 0, "errors", dropped=sum(outcome["num_dropped"] for outcome in outcomes))
        report.row("daemon_exit_code", daemon.stop(), 0, "code")
    finally:
        for child in overload.children.values():
            child.kill()
        daemon.close()
    return report.exit_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=1.0, metavar="M", help="5 is the full form")
    parser.add_argument("--trainers", type=int, default=4, metavar="N")
    parser.add_argument("--layers", type=int, default=8, metavar="N", help="of each")
    parser.add_argument("--size", type=int, default=512, metavar="N", help="rows and columns of a layer")
    parser.add_argument(
        "--mailbox", type=int, default=24, metavar="MIB", help="below 16 it has not room for all layers"
    )
    parser.add_argument("--calibrate", type=float, default=8.0, metavar="S", help="seconds to find the daemon's rate")
    parser.add_argument("--times", type=float, default=10.0, metavar="X", help="what the daemon can measure")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        code = bench(Path(directory), arguments)
    sys.exit(code)


if __name__ == "__main__":
    main()
