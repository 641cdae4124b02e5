"""A daemon killed with SIGKILL at random moments while a trainer pushes and subscribers read: what is lost?

    python benchmarks/kills.py [--kills N] [--measurements N]

The moments are uniform over a cycle that begins with the process, so they hit start-up, measuring and commits alike; it
is started again at once. The trainer's layers follow a script in which alerts fire, resolve and rebase, layers turn NaN
or zero, and the run goes back to a checkpoint. One subscriber stays through all restarts of the daemon, another is
itself ended, now with SIGTERM, now with SIGKILL, and goes on from the file that keeps its place. Prints one JSON line a
row, and exits with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _history as history
import torch
from _daemon import Daemon, clean_environment
from _report import Report

from rankd_client import Client

RUN, FIRST_RUN = "scripted", "first"
HERE = Path(__file__).parent
CYCLE = 2.5
"""Times the start-up of the daemon: two in five kills hit that."""

READER_ENDS = 0.3
"""Share of the cycles in which the second subscriber is ended too."""

ARRIVAL_SECONDS = 30.0
PACE_SECONDS = 300.0
"""For the measurements that are missing when the kills are over."""


def spawn(script: str, *arguments: str | Path, **options: Any) -> subprocess.Popen[str]:
    """A process that ends with us: its stdin is our pipe."""
    command = [sys.executable, str(HERE / script), *map(str, arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=clean_environment(), **options)


class AlertReader:
    """The process of a subscriber, and what it has read."""

    def __init__(self, url: str, path: Path, place: Path | None = None) -> None:
        self.path = path
        self.num_killed = 0
        self._arguments: list[str | Path] = [url, path, *([place] if place else [])]
        self._process = spawn("_alert_reader.py", *self._arguments)

    def restart(self, kill: bool) -> None:
        if kill:
            self._process.kill()
            self._process.wait()
            self.num_killed += 1
        self.end()
        self._process = spawn("_alert_reader.py", *self._arguments)

    def end(self) -> None:
        """RuntimeError where it failed by itself."""
        self._process.terminate()
        code = self._process.wait(60)
        assert self._process.stdin is not None
        self._process.stdin.close()
        if code not in (0, -9, -15):
            raise RuntimeError(f"a subscriber ended with {code}")

    def alerts(self, run: str = RUN) -> list[dict[str, Any]]:
        lines = self.path.read_text().splitlines(keepends=True) if self.path.exists() else []
        alerts = [json.loads(line) for line in lines if line.endswith("\n")]
        return [alert for alert in alerts if alert["run"] == run]

    def wait(self, number: int, run: str = RUN) -> bool:
        """Whether it has read so many alerts in time."""
        return wait_until(f"{number} alerts of {run}", ARRIVAL_SECONDS, lambda: len(self.alerts(run)) >= number)


Event = tuple[str, str]


def event_of(alert: dict[str, Any]) -> Event:
    """What tells one alert event from another, in any stream."""
    return alert["alert_id"], alert["state"]


class Trainer:
    def __init__(self, url: str, directory: Path, num_layers: int, pause_seconds: float) -> None:
        self._log = directory / "trainer.log"
        arguments = (url, RUN, str(num_layers), str(pause_seconds), self._log)
        self._process = spawn("_scripted_trainer.py", *arguments, stdout=subprocess.PIPE)

    def num_recorded(self) -> int:
        return sum(count for (what, *_), count in self.told().items() if what == "recorded")

    def told(self) -> Counter[tuple[str, int, str]]:
        """(push, recorded or superseded; step; layer) → how often."""
        lines = self._log.read_text().splitlines() if self._log.exists() else []
        words = (line.split(" ", 2) for line in lines)
        return Counter((word[0], int(word[1]), word[2]) for word in words if len(word) == 3)

    def end(self) -> dict[str, Any]:
        """What it says of itself at the end, and its exit code."""
        output, _ = self._process.communicate(timeout=120)
        return {"exit_code": self._process.returncode, **(json.loads(output) if output else {"num_errors": -1})}

    def check(self) -> None:
        if self._process.poll() is not None:
            raise RuntimeError(f"the trainer ended by itself with {self._process.returncode}")

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()


def join(url: str, readers: list[AlertReader]) -> None:
    """Wait until the readers follow: each has heard of a layer that is NaN. They are promised what comes after."""
    with Client(FIRST_RUN, url, max_overhead=None, echo=False) as client:
        client.push({"w": torch.full((4, 4), float("nan"))}, step=0)
        client.flush(ARRIVAL_SECONDS)
    for reader in readers:
        if not reader.wait(1, FIRST_RUN):
            raise RuntimeError("a subscriber did not join")


def kill_many(
    daemon: Daemon, trainer: Trainer, reader: AlertReader, arguments: argparse.Namespace, cycle_seconds: float
) -> dict[str, Any]:
    """Kill the daemon so many times. Returns what was hit."""
    generator = random.Random(arguments.seed)
    num_starting = 0
    for _ in range(arguments.kills):
        time.sleep(generator.uniform(0.0, cycle_seconds))
        num_starting += not daemon.ready
        daemon.kill()
        daemon.start()
        trainer.check()
        if generator.random() < READER_ENDS:
            reader.restart(kill=generator.random() < 0.5)
    return {"kills": arguments.kills, "kills_in_start_up": num_starting, "cycle_seconds": round(cycle_seconds, 2)}


def wait_until(what: str, seconds: float, done: Callable[[], Any]) -> bool:
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            print(f"not in {seconds} s: {what}", file=sys.stderr)
            return False
        time.sleep(0.2)
    return True


def judge_measurements(report: Report, told: Counter[tuple[str, int, str]], rows: list[dict[str, Any]]) -> None:
    def of(what: str) -> Counter[tuple[int, str]]:
        return Counter({(step, layer): count for (kind, step, layer), count in told.items() if kind == what})

    recorded = Counter((row["step"], row["layer"]) for row in rows)
    pushed, acknowledged = of("push"), of("recorded")
    promised = acknowledged & pushed  # an acknowledgement may come twice, where the connection was lost in between
    lost = promised - recorded
    again = recorded - pushed
    more: dict[str, Any] = {"acknowledged": promised.total(), "recorded": recorded.total(), "pushed": pushed.total()}
    more["superseded"] = of("superseded").total()
    report.row("acknowledged_measurements_lost", lost.total(), 0, "measurements", **more)
    report.row("measurements_recorded_twice", again.total(), 0, "measurements")


def judge_subscriber(report: Report, name: str, read: list[Event], published: list[Event], own_kills: int = 0) -> None:
    """A subscriber that is killed between taking an alert and keeping its place is told it once more."""
    lost, repeated = Counter(published) - Counter(read), Counter(read) - Counter(published)
    report.row(f"alerts_lost_{name}", lost.total(), 0, "alerts", published=len(published))
    report.row(f"alerts_repeated_{name}", repeated.total(), own_kills, "alerts", own_kills=own_kills)
    once = list(dict.fromkeys(read))
    wanted = [event for event in published if event not in lost]
    misplaced = sum(ours != theirs for ours, theirs in zip(once, wanted, strict=False))
    report.row(f"alerts_out_of_order_{name}", misplaced, 0, "alerts")


def judge_alerts(report: Report, alerts: list[dict[str, Any]], replayed: list[dict[str, Any]]) -> None:
    """The alerts in the history are those of a replay, one by one and in order."""

    def told(alert: dict[str, Any]) -> dict[str, Any]:
        return {key: value for key, value in alert.items() if key not in ("stream_id", "seq", "n")}

    pairs = zip(alerts, replayed, strict=False)
    num_different = sum(told(ours) != told(theirs) for ours, theirs in pairs) + abs(len(alerts) - len(replayed))
    states = Counter(alert["state"] for alert in alerts)
    rules = Counter(alert["rule"] for alert in alerts)
    report.row("alerts_unlike_replay", num_different, 0, "alerts", states=states, rules=rules)


def bench(directory: Path, arguments: argparse.Namespace) -> int:
    report = Report()
    daemon = Daemon(directory)
    daemon.start()
    trainer = None
    try:
        cycle_seconds = CYCLE * daemon.wait_ready()
        steady = AlertReader(daemon.url, directory / "steady.jsonl")
        restarted = AlertReader(daemon.url, directory / "restarted.jsonl", directory / "place")
        join(daemon.url, [steady, restarted])
        started = time.monotonic()
        trainer = Trainer(daemon.url, directory, arguments.layers, arguments.pause)
        hit = kill_many(daemon, trainer, restarted, arguments, cycle_seconds)
        daemon.wait_ready()
        enough = arguments.measurements
        wait_until(f"{enough} measurements", PACE_SECONDS, lambda: trainer.num_recorded() >= enough)
        ended = trainer.end()
        alerts = history.alerts(daemon.data, RUN)
        for reader in (steady, restarted):
            reader.wait(len(alerts))
            reader.end()
        stopped = daemon.stop()
    finally:
        daemon.close()
        if trainer is not None:
            trainer.close()
    rows = history.measurements(daemon.data, RUN)
    seconds = round(time.monotonic() - started, 1)
    report.row("measurements", len(rows), arguments.measurements, "measurements", at_least=True, seconds=seconds, **hit)
    judge_measurements(report, trainer.told(), rows)
    published = [event_of(alert) for alert in alerts]
    for name, reader in (("steady", steady), ("restarted", restarted)):
        judge_subscriber(report, name, [event_of(alert) for alert in reader.alerts()], published, reader.num_killed)
    judge_alerts(report, alerts, history.replayed_alerts(daemon.data, RUN))
    num_failed = ended["num_errors"] + (ended["exit_code"] != 0) + (not ended.get("flushed"))
    report.row("trainer_errors", num_failed, 0, "errors", trainer=ended)
    report.row("damaged_files", history.num_damaged_files(daemon.data), 0, "files")
    report.row("daemon_exit_code", stopped, 0, "code")
    return report.exit_code


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=5, metavar="N", help="100 is the full form")
    parser.add_argument("--measurements", type=int, default=500, metavar="N", help="at least; 5000 is the full form")
    parser.add_argument("--layers", type=int, default=24, metavar="N")
    parser.add_argument("--pause", type=float, default=0.02, metavar="SECONDS", help="between pushes")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        code = bench(Path(directory), arguments)
    sys.exit(code)


if __name__ == "__main__":
    main()
