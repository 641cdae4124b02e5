"""A job of many processes on one host, with shards as a sharded model has them: children that push, and hold together
as a job's collectives would hold them."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import signal
import sys
import time
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from rankd_client import Client

sys.path.append(str(Path(__file__).parents[1] / "tests" / "support"))
from place_rows import Rows

OUT = 1 << 62
"""The step of a process that the others do not wait for."""

POLL_SECONDS = 0.004
SLOWER = 3.0


@dataclass(frozen=True, slots=True)
class Job:
    """`apart`: steps by which processes may differ. `slow_share` of them take SLOWER times as long for a step."""

    run: str
    url: str
    num_processes: int = 64
    num_layers: int = 24
    size: int = 512
    step_seconds: float = 0.05
    apart: int = 3
    slow_share: float = 0.05
    seconds: float = 60.0
    max_overhead: float | None = 0.05


class Processes:
    """The children of a job: steps of each, and signals to one of them."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("fork")
        self.steps = multiprocessing.RawArray(ctypes.c_int64, job.num_processes)
        self.pushed = multiprocessing.RawArray(ctypes.c_int64, job.num_processes)
        """Layers that each has given to its client."""
        end = context.Value(ctypes.c_int64, OUT)
        self._children: list[BaseProcess] = [
            context.Process(target=_train, args=(job, number, self.steps, self.pushed, end), daemon=True)
            for number in range(job.num_processes)
        ]
        for child in self._children:
            child.start()

    def kill(self, number: int) -> None:
        self._children[number].kill()
        self._children[number].join()
        self.steps[number] = OUT

    def freeze(self, number: int, seconds: float) -> None:
        pid = self._children[number].pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)
        time.sleep(seconds)
        os.kill(pid, signal.SIGCONT)

    def join(self) -> None:
        for child in self._children:
            child.join()
            child.close()


def _train(job: Job, number: int, steps: Any, pushed: Any, end: Any) -> None:
    os.environ |= {"RANK": str(number), "WORLD_SIZE": str(job.num_processes)}
    torch.set_num_threads(1)
    chance = random.Random(number)
    weights = {f"h.{i}.weight": torch.randn(job.size // job.num_processes, job.size) for i in range(job.num_layers)}
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # each would say how it starts
    rows = Rows(number, job.num_processes)
    client = Client(job.run, job.url, max_overhead=job.max_overhead, echo=False, adapters=(rows,))
    is_slow = number % max(1, round(1 / job.slow_share)) == 1
    until = time.monotonic() + job.seconds
    step = 0
    while step < end.value:
        time.sleep(job.step_seconds * chance.uniform(0.8, 1.2) * (SLOWER if is_slow else 1.0))
        pushed[number] += client.push(weights, step=step).num_queued
        step += 1
        steps[number] = step
        if time.monotonic() >= until:
            with end:  # all end at the same step, which none has come to yet
                end.value = min(end.value, step + job.apart + 2)
        while min(steps) < step - job.apart:
            time.sleep(POLL_SECONDS)
    steps[number] = OUT
    client.flush(10.0)
    client.close()
