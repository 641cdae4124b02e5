"""64 processes of one job, each with 1/64 of every layer, 5 % of them slow: how many layers the daemon gets whole.

A real daemon, and real clients in processes forked from one that has imported torch. Their steps take 50 ms, more or
less; the slow ones three times as long. A job's collectives hold its processes together: loosely (within 3 steps) or
in lock step. In the middle of one round a process is killed, of another one stands still for 10 s. All of it on the
cores of this machine, so that far more is pushed than they can carry until the daemon's plan has spaced the pushes:
the seconds until then are told apart. Prints one JSON line a row.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

from _daemon import Daemon
from _job import Job, Processes
from _report import Report
from _state import state

GOAL = 0.95
FROZEN_SECONDS = 10.0
LOST = ("dropped_overtaken", "dropped_timed_out", "dropped_process_gone", "dropped_assembly_full")


def counters(url: str) -> dict[str, int]:
    told = state(url)["counters"]
    return {name: told.get(name, 0) for name in ("num_assembled", *LOST, "dropped_superseded", "dropped_late_shards")}


def share(before: dict[str, int], after: dict[str, int]) -> float:
    """Of the layers of which any part came between, those that were whole."""
    num_whole = after["num_assembled"] - before["num_assembled"]
    num_lost = sum(after[name] - before[name] for name in LOST)
    return num_whole / max(1, num_whole + num_lost)


def round_of(name: str, job: Job, report: Report, settle_seconds: float, hurt: str = "") -> None:
    """One job from its start to its end. Without one of its processes no layer can be whole: where one is killed, what
    counts is until then."""
    before = counters(job.url)
    processes = Processes(job)
    time.sleep(settle_seconds)
    settled = counters(job.url)
    time.sleep((job.seconds - settle_seconds) / 3)
    middle = counters(job.url)
    if hurt == "killed":
        processes.kill(job.num_processes // 2)
    elif hurt == "frozen":
        processes.freeze(job.num_processes // 2, FROZEN_SECONDS)
    time.sleep((job.seconds - settle_seconds) / 3)
    told = [row for row in state(job.url).get("trainers", []) if row["run"] == job.run]
    processes.join()
    time.sleep(2.0)
    after = counters(job.url)
    end = middle if hurt == "killed" else after
    more: dict[str, Any] = {
        "settle_seconds": settle_seconds,
        "share_with_the_first_seconds": round(share(before, end), 4),
        "whole": end["num_assembled"] - settled["num_assembled"],
        "lost": {key: end[key] - settled[key] for key in LOST if end[key] > settled[key]},
        "layers_copied_by_process_0": processes.pushed[0],
        "told": told[0] if told else None,
        "processes": job.num_processes,
    }
    report.row(f"whole_{name}", round(share(settled, end), 4), GOAL, "share of layers", at_least=True, **more)
    if hurt == "killed":
        alerts = [alert for alert in state(job.url)["alerts"] if alert["run"] == job.run]
        lost = {key: after[key] - middle[key] for key in LOST if after[key] > middle[key]}
        processes_told = [alert["processes"] for alert in alerts if alert["rule"] == "trainer_gone"]
        report.row("alerts_of_one_killed", len(alerts), 1, "alerts", processes_told=processes_told, lost_then=lost)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each round")
    parser.add_argument("--settle-seconds", type=float, default=20.0, help="of them, until the plan has spaced them")
    parser.add_argument("--processes", type=int, default=64)
    parser.add_argument("--only", help="one round by its name")
    parser.add_argument("--log", action="store_true", help="show the daemon's log")
    arguments = parser.parse_args()
    report = Report()
    rounds = {"loose": (3, ""), "lock_step": (0, ""), "one_killed": (3, "killed"), "one_frozen": (3, "frozen")}
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        daemon = Daemon(Path(directory))
        daemon.start()
        try:
            daemon.wait_ready()
            for name, (apart, hurt) in rounds.items():
                if arguments.only in (None, name):
                    job = Job(name, daemon.url, arguments.processes, apart=apart, seconds=arguments.seconds)
                    round_of(name, job, report, arguments.settle_seconds, hurt)
            daemon.check()
        finally:
            daemon.close()
            if arguments.log:
                print(daemon.log.read_text())
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
