"""Workers of a Ray cluster killed with SIGKILL in mid-job: what is lost, doubled, or told otherwise?

    python benchmarks/ray_kills.py [--kills N]

A real daemon with `--executor ray` on a cluster of three nodes on this machine, and a trainer that pushes layers of
which one collapses. Whenever a worker is seen measuring, it is killed, a moment later the next one. The same pushes
then go to a daemon with `--executor inline`; measurements and alerts of both histories are compared. Prints one JSON
line a row, and exits with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _history as history
import torch
from _daemon import Daemon
from _report import Report

from rankd_client import Client

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from ray_nodes import RayNodes

RUN = "hunted"
NUM_LAYERS, SIZE = 6, 640
COLLAPSES_AT = 30
MIN_PUSHES = 60
PAUSE_SECONDS = (0.3, 2.0)
"""Between two kills. A matrix that three workers in turn have died of is given up, as it should be."""

KILL_SECONDS = 600.0
FLUSH_SECONDS = 120.0
TOLD = ("layer", "step", "severity", "state", "rule", "metric", "value", "baseline", "message")
"""What is said of a layer; the rest of an alert is who said it, and when."""


class Model:
    """Square matrices; the smaller half of the first one's singular values shrinks from push COLLAPSES_AT on."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        pairs = [[torch.randn(SIZE, SIZE, generator=generator) for _ in "lr"] for _ in range(NUM_LAYERS)]
        self._bases = [tuple(torch.linalg.qr(side)[0] for side in pair) for pair in pairs]

    def weights(self, index: int) -> dict[str, torch.Tensor]:
        sigma = torch.ones(SIZE)
        sigma[SIZE // 2 :] = 0.93 ** max(0, index - COLLAPSES_AT)
        sigmas = [sigma, *[torch.ones(SIZE)] * (NUM_LAYERS - 1)]
        return {f"layer{n}": (left * sigmas[n]) @ right for n, (left, right) in enumerate(self._bases)}


def step_of(index: int) -> int:
    """Steps grow by a share, as detectors look back."""
    return round(1000 * 1.005**index)


class Killer(threading.Thread):
    """Kills `num_kills` workers that are at work, one after the other."""

    def __init__(self, nodes: RayNodes, num_kills: int, seed: int) -> None:
        super().__init__(daemon=True)
        self._nodes, self._num_kills = nodes, num_kills
        self._random = random.Random(seed)
        self.num_killed = 0

    def run(self) -> None:
        until = time.monotonic() + KILL_SECONDS
        while self.num_killed < self._num_kills and time.monotonic() < until:
            if workers := self._nodes.workers(at_work=True):
                os.kill(self._random.choice(workers), signal.SIGKILL)
                self.num_killed += 1
                time.sleep(self._random.uniform(*PAUSE_SECONDS))
            time.sleep(0.02)


def push(url: str, model: Model, is_enough: Callable[[int], bool]) -> int:
    """Each push once the one before is recorded, so that none takes another's place; how many there were."""
    index = 0
    with Client(RUN, url, max_overhead=None, echo=False, strict=True) as client:
        while not is_enough(index):
            client.push(model.weights(index), step=step_of(index))
            if not client.flush(FLUSH_SECONDS):
                raise RuntimeError(f"push {index} is not dealt with in {FLUSH_SECONDS} s")
            index += 1
    return index


def served(directory: Path, executor: str, model: Model, is_enough: Callable[[int], bool]) -> dict[str, Any]:
    """What a daemon with that executor has recorded of the pushes, and how it ended."""
    directory.mkdir()
    daemon = Daemon(directory, f'[serve]\nexecutor = "{executor}"\n\n[measure]\ntier = "exact"\n')
    daemon.start()
    try:
        daemon.wait_ready()
        num_pushes = push(daemon.url, model, is_enough)
        exit_code = daemon.stop()
    finally:
        daemon.close()
    rows, alerts = history.measurements(daemon.data, RUN), history.alerts(daemon.data, RUN)
    return {"pushes": num_pushes, "exit_code": exit_code, "rows": rows, "alerts": alerts}


def judge(report: Report, ours: dict[str, Any], inline: dict[str, Any]) -> None:
    def counted(found: dict[str, Any]) -> Counter[tuple[int, str]]:
        return Counter((row["step"], row["layer"]) for row in found["rows"])

    def alerts(found: dict[str, Any]) -> list[tuple[Any, ...]]:
        return sorted((tuple(alert[key] for key in TOLD) for alert in found["alerts"]), key=repr)

    steps, names = map(step_of, range(ours["pushes"])), [f"layer{n}" for n in range(NUM_LAYERS)]
    wanted = Counter((step, name) for step in steps for name in names)
    recorded = counted(ours)
    more = {"pushed": wanted.total(), "recorded": recorded.total()}
    report.row("measurements_lost", (wanted - recorded).total(), 0, "measurements", **more)
    report.row("measurements_doubled", (recorded - wanted).total(), 0, "measurements")
    others = {(row["step"], row["layer"]): row for row in inline["rows"]}
    differences = [
        abs(row["effective_rank"] / others[row["step"], row["layer"]]["effective_rank"] - 1)
        for row in ours["rows"]
        if (row["step"], row["layer"]) in others
    ]
    report.row("numbers_unlike_inline", max(differences), 1e-12, "relative", compared=len(differences))
    told, expected = Counter(alerts(ours)), Counter(alerts(inline))
    num_different = (told - expected).total() + (expected - told).total()
    states = Counter(alert["state"] for alert in ours["alerts"])
    report.row("alerts_unlike_inline", num_different, 0, "alerts", states=states)
    report.row("alerts", told.total(), 1, "alerts", at_least=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, metavar="N")
    parser.add_argument("--seed", type=int, default=0, help="of who is killed, and when")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report, model = Report(), Model()
    nodes = RayNodes(3)
    os.environ.update(nodes.environment)
    killer = Killer(nodes, arguments.kills, arguments.seed)
    try:
        with tempfile.TemporaryDirectory(prefix="rk") as path:
            killer.start()
            began = time.monotonic()
            ours = served(Path(path) / "r", "ray", model, lambda n: n >= MIN_PUSHES and not killer.is_alive())
            seconds = round(time.monotonic() - began, 1)
            inline = served(Path(path) / "i", "inline", model, lambda n: n >= ours["pushes"])
    finally:
        nodes.close()
    report.row("kills_in_mid_job", killer.num_killed, arguments.kills, "kills", at_least=True, seconds=seconds)
    judge(report, ours, inline)
    report.row("daemon_exit_code", max(ours["exit_code"], inline["exit_code"]), 0, "code")
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
