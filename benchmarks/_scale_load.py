"""A real daemon on so many cores, trainers that push to it in open loop, and what the kernel says the daemon took."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
import urllib.request
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import torch
from _children import CONNECT_SECONDS, Child
from _daemon import Daemon

from rankd_client import Client, subscribe

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from place_rows import Rows

Shape = tuple[int, int]
FLUSH_SECONDS = 300.0
QUIET_SECONDS = 4.0
"""Without a measurement; so long a subscription goes on after close()."""

SMALLEST_BYTES = 64 << 20
"""Of a trainer's memory; it has twice a push where that is more."""


class Load(NamedTuple):
    """What a trainer is told: push its part of so many layers of `shape`, every `interval` seconds for `seconds`; with
    0 seconds once. `wait`: until the daemon has dealt with all of it."""

    layers: int
    shape: Shape
    interval: float = 1.0
    seconds: float = 0.0
    wait: bool = False

    @property
    def num_bytes(self) -> int:
        """Of one push in bfloat16."""
        return 2 * self.layers * self.shape[0] * self.shape[1]


class Used(NamedTuple):
    """CPU seconds of a daemon since its start. Measuring is told from the rest by its niceness."""

    measuring: float
    intake: float
    """All else: the gate, ZeroMQ, assembly, detectors, history, HTTP."""
    busiest: float
    """The thread of `intake` that took most."""


@dataclass(frozen=True)
class Setting:
    """How a daemon runs. `keyring`: over TCP with keys; else over `tcp` without, or ipc. `tolerance`: of estimates."""

    tier: str
    cores: int
    device: str = "cpu"
    tcp: bool = False
    keyring: Path | None = None
    key: Path | None = None
    tolerance: float = 0.05


class ScaleDaemon(Daemon):
    """`cores` of those that this process may use, the last ones."""

    def __init__(self, directory: Path, setting: Setting) -> None:
        config = f'[measure]\ntier = "{setting.tier}"\ntolerance = {setting.tolerance}\n'
        super().__init__(directory, config, http=True)
        self._cores = set(sorted(os.sched_getaffinity(0))[-setting.cores :])
        if setting.tcp or setting.keyring is not None:
            discovery = directory / "where.json"
            self._command[self._command.index(self.url)] = "tcp://127.0.0.1:0"
            self._command += ["--discovery", str(discovery)]
            self.url = f"file://{discovery}"
        if setting.keyring is not None:
            self._command += ["--keys", str(setting.keyring)]
        self._command[self._command.index("--device") + 1] = setting.device

    def start(self) -> None:
        """A child has its parent's affinity, and the daemon one slot for every two cores, two at least."""
        ours = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)
        try:
            super().start()
        finally:
            os.sched_setaffinity(0, ours)

    def ask(self, page: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"{self.http}/{page}", timeout=30) as reply:
            return dict(json.load(reply))

    def used(self) -> Used:
        measuring, intake = 0.0, [0.0]
        base = _nice(Path(f"/proc/{self.pid}"))
        for task in Path(f"/proc/{self.pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended
                seconds = int((task / "schedstat").read_text().split()[0]) / 1e9
                if _nice(task) > base:
                    measuring += seconds
                else:
                    intake.append(seconds)
        return Used(measuring, sum(intake), max(intake))


def _nice(task: Path) -> int:
    return int((task / "stat").read_text().rpartition(")")[2].split()[16])


def since(before: Used, after: Used) -> Used:
    return Used(*(b - a for a, b in zip(before, after, strict=True)))


def make_weights(layers: int, shape: Shape, seed: int) -> dict[str, torch.Tensor]:
    """A bulk and a few large singular values, as trained matrices have them. In bfloat16, as they are sent: what
    rounding hides of a float32 makes an estimate go to the exact tier."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for index in range(layers):
        left, right = (torch.randn(side, 8, generator=generator) for side in shape)
        bulk = torch.randn(shape, generator=generator)
        found[f"{shape[0]}x{shape[1]}.{index}"] = (0.02 * (bulk + (left * 0.5 ** torch.arange(8)) @ right.T)).bfloat16()
    return found


def train(pipe: Connection, url: str, run: str, number: int, world: int, key: str | None, max_push_bytes: int) -> None:
    """Process `number` of `world`, each with as many rows of every matrix. Says "connected", answers each Load with
    (step, time) of its pushes and the number of layers that came to the client, and ends when it is told None."""
    torch.set_num_threads(1)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # each would say how it starts
    if world > 1:
        os.environ |= {"RANK": str(number), "WORLD_SIZE": str(world)}
    adapters = (Rows(number, world),) if world > 1 else ()
    memory = max(SMALLEST_BYTES, 2 * max_push_bytes)
    options: dict[str, Any] = {"max_overhead": None, "max_push_bytes": max_push_bytes, "max_memory_bytes": memory}
    client = Client(run, url, echo=False, key=key, adapters=adapters, **options)
    client.push({"hello": torch.randn(2, 4)}, step=0)
    deadline = time.monotonic() + CONNECT_SECONDS - 5
    while not client.connected and time.monotonic() < deadline:
        time.sleep(0.02)
    pipe.send("connected" if client.connected else "not connected")
    step = 1
    while (load := pipe.recv()) is not None:
        rows, cols = load.shape
        weights = make_weights(load.layers, (rows // world, cols), seed=step + number)
        pipe.send("made")
        phase: float = pipe.recv()
        pushes: list[tuple[int, float]] = []
        num_queued = 0
        began = next_at = time.monotonic() + phase
        while not pushes or next_at < began + load.seconds:
            time.sleep(max(0.0, next_at - time.monotonic()))
            pushes.append((step, time.monotonic()))
            num_queued += client.push(weights, step=step).num_queued
            step, next_at = step + 1, next_at + load.interval
        flushed = client.flush(FLUSH_SECONDS) if load.wait else True
        pipe.send((pushes, num_queued, flushed))
    client.close()


class Trainers:
    """`world` processes of one job, or `runs` jobs of one."""

    def __init__(self, daemon: ScaleDaemon, setting: Setting, world: int = 1, runs: int = 1, megabytes: int = 64):
        key = None if setting.key is None else str(setting.key)
        places = [(f"run-{run}", number) for run in range(runs) for number in range(world)]
        self.runs = [run for run, _ in places]
        self._children = [Child(train, daemon.url, *place, world, key, megabytes << 20) for place in places]
        said = [child.hear(CONNECT_SECONDS) for child in self._children]
        if set(said) != {"connected"}:
            raise RuntimeError(f"{said.count('not connected')} of {len(said)} trainers found no daemon")

    def begin(self, load: Load) -> None:
        """All have their weights when it returns, and begin, jobs spread over an interval."""
        for child in self._children:
            child.pipe.send(load)
        for child in self._children:
            child.hear(60)
        num_runs = len(set(self.runs))
        for child, run in zip(self._children, self.runs, strict=True):
            child.pipe.send(load.interval * int(run[4:]) / num_runs)

    def end(self, load: Load) -> list[tuple[list[tuple[int, float]], int]]:
        """Of each process its pushes, and how many layers were queued."""
        said = [child.hear(load.seconds + load.interval + FLUSH_SECONDS + 30) for child in self._children]
        if not all(flushed for _, _, flushed in said):
            raise RuntimeError(f"not all was measured within {FLUSH_SECONDS} s")
        return [(pushes, num_queued) for pushes, num_queued, _ in said]

    def close(self) -> None:
        for child in self._children:
            child.kill()


class Heard:
    """Of each measurement (run, step) and when it was heard of, until close()."""

    def __init__(self, url: str) -> None:
        self.items: list[tuple[str, int, float]] = []
        self._end = threading.Event()
        self._url = url
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        while not self._end.is_set():
            for item in subscribe(self._url, streams=("measurement",), timeout=QUIET_SECONDS):
                self.items.append((item["run"], item["step"], time.monotonic()))
                if self._end.is_set():
                    break

    def close(self) -> None:
        self._end.set()
        self._thread.join(2 * QUIET_SECONDS)
