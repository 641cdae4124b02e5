"""Which worker gets which matrices, and what becomes of them where it dies. Pure: it knows nothing of Ray."""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rankd.executors.packed import Array

CALLS_PER_WORKER = 2
"""One at work, and the next at hand."""

MAX_DEATHS = 3
"""Workers that may die of a matrix, or beside it, before it goes back to the daemon."""

MAX_BATCH = 32

MAX_BATCH_BYTES = {False: 4 << 20, True: 256 << 20}
"""On a core, on a GPU. A core saves no more than a call's millisecond, and takes some tens for a megabyte."""

MAX_HOMES = 1 << 16
"""Layers whose last worker is remembered, those used last."""


@dataclass(slots=True, eq=False)
class Job:
    """A work as `packed.describe` tells it. `arrays` until they are in the object store, then `where`: the
    reference of the batch that they came in, and their place in it."""

    number: int
    layer: str
    description: dict[str, Any]
    arrays: Sequence[Array]
    where: tuple[Any, int] | None = None
    num_deaths: int = 0

    @property
    def num_bytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(slots=True, eq=False)
class Worker:
    """`calls`: the jobs of each call that is under way, the one at work first."""

    on_gpu: bool
    calls: deque[list[Job]] = field(default_factory=deque)


class Dispatch:
    """Jobs in the order they came, workers that are ready, and which layer was last where."""

    def __init__(self) -> None:
        self.workers: list[Worker] = []
        self._waiting: deque[Job] = deque()
        self._homes: OrderedDict[str, Worker] = OrderedDict()

    def put(self, job: Job) -> None:
        self._waiting.append(job)

    def next(self) -> tuple[Worker, list[Job]] | None:
        """A worker with room, and the jobs of its next call, which counts as under way; None where there is none, or
        nothing to do."""
        for worker in sorted(self.workers, key=lambda worker: len(worker.calls)):
            if len(worker.calls) < CALLS_PER_WORKER and (jobs := self._take(worker)):
                worker.calls.append(jobs)
                return worker, jobs
        return None

    def done(self, worker: Worker, jobs: list[Job]) -> None:
        """A call is over."""
        worker.calls.remove(jobs)

    def lost(self, worker: Worker) -> list[Job]:
        """It died. Its jobs are the next ones, each by itself, but for those returned: too many have died of them. What
        only waited for it is not suspected."""
        self.workers.remove(worker)
        self._homes = OrderedDict((layer, home) for layer, home in self._homes.items() if home is not worker)
        killed: list[Job] = []
        for place, jobs in reversed(list(enumerate(worker.calls))):
            for job in reversed(jobs):
                job.num_deaths += place == 0
                if job.num_deaths < MAX_DEATHS:
                    self._waiting.appendleft(job)
                else:
                    killed.append(job)
        worker.calls.clear()
        return killed

    def _take(self, worker: Worker) -> list[Job]:
        """Of what waits, first what was last with this worker, so that it starts warm; then what was with none; and
        only where the worker would be idle what another one had, which is behind then."""
        for wanted in (self._is_home, self._is_homeless, self._may_move):
            first = next((job for job in self._waiting if wanted(worker, job)), None)
            if first is not None:
                jobs = self._batch(worker, first, wanted)
                for job in jobs:
                    self._waiting.remove(job)
                    self._remember(job.layer, worker)
                return jobs
        return []

    def _batch(self, worker: Worker, first: Job, wanted: Any) -> list[Job]:
        """`first` and others of its tier, but no more than its share. What has been in a batch already goes alone."""
        if first.where is not None:
            return [first]
        most = min(MAX_BATCH, math.ceil(len(self._waiting) / len(self.workers)))
        jobs, num_bytes = [first], first.num_bytes
        for job in self._waiting:
            if job is first or job.where is not None or not wanted(worker, job):
                continue
            if job.description["tier"] != first.description["tier"]:
                continue
            num_bytes += job.num_bytes
            if len(jobs) >= most or num_bytes > MAX_BATCH_BYTES[worker.on_gpu]:
                break
            jobs.append(job)
        return jobs

    def _is_home(self, worker: Worker, job: Job) -> bool:
        return self._homes.get(job.layer) is worker

    def _is_homeless(self, worker: Worker, job: Job) -> bool:
        return job.layer not in self._homes

    def _may_move(self, worker: Worker, job: Job) -> bool:
        return not worker.calls and job.layer in self._homes and bool(self._homes[job.layer].calls)

    def _remember(self, layer: str, worker: Worker) -> None:
        self._homes[layer] = worker
        self._homes.move_to_end(layer)
        if len(self._homes) > MAX_HOMES:
            self._homes.popitem(last=False)
