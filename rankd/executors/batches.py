"""Measuring on GPUs: a thread each, which takes what waits in batches."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import torch

from rankd.executors.solver import CPU, OnFault, Solver
from rankd.executors.threads import prepare_worker
from rankd.executors.work import Work
from rankd.weights import Part, Settings

SLOTS_PER_DEVICE = 32
"""Snapshots handed over at once: a batch of 16 matrices cost a third of 16 alone in the norms tier, one of 32 hardly
less; twice as many keep the next batch at hand."""

MAX_BATCH = 32

MAX_BATCH_BYTES = 1 << 30
"""Of snapshots: a batch holds up nobody for much longer than its largest matrix would."""


Item = tuple[Work, "Future[list[Part]]"]


class BatchExecutor:
    """Each thread takes the oldest work that waits, and with it those of the same tier that wait too.

    A device that fails leaves what waits to the others; the last one's thread goes on with the CPU. What spoils a CUDA
    context (an assertion in a kernel, say) spoils those of all GPUs in the process: they fail one after the other.
    """

    def __init__(self, devices: Sequence[torch.device], on_fault: OnFault, settings: Settings) -> None:
        self._solvers = [Solver(device, on_fault, settings) for device in devices]
        self.num_slots, self.num_workers = SLOTS_PER_DEVICE * len(devices), len(devices)
        self._waiting: deque[Item] = deque()
        self._changed = threading.Condition()
        self._closed = False
        for solver in self._solvers:
            name = f"measure-{solver.device}"
            threading.Thread(target=self._run, args=(solver,), name=name, daemon=True).start()

    @property
    def device(self) -> torch.device:
        return next((solver.device for solver in self._solvers if solver.device != CPU), CPU)

    def submit(self, work: Work) -> Future[list[Part]]:
        future: Future[list[Part]] = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            self._waiting.append((work, future))
            self._changed.notify()
        return future

    def close(self) -> None:
        with self._changed:
            self._closed = True
            for _, future in self._waiting:
                future.cancel()
            self._waiting.clear()
            self._changed.notify_all()

    def _run(self, solver: Solver) -> None:
        prepare_worker()
        while (batch := self._take(solver)) is not None:
            taken = [(work, future) for work, future in batch if future.set_running_or_notify_cancel()]
            try:
                outcomes = solver.measure_all([work for work, _ in taken])
            except BaseException as error:  # ours: whoever waits for it has to hear
                outcomes = [error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(taken)
            for (_, future), outcome in zip(taken, outcomes, strict=True):
                if isinstance(outcome, Exception):
                    future.set_exception(outcome)
                else:
                    future.set_result(outcome)

    def _take(self, solver: Solver) -> list[Item] | None:
        """None when it is over, for all or for this thread: it has lost its device, and another has not."""
        with self._changed:
            while not self._closed and not self._waiting:
                self._changed.wait()
            if self._closed or (solver.device == CPU and self.device != CPU):
                self._changed.notify()
                return None
            tier, num_bytes = self._waiting[0][0].tier, 0
            batch, rest = list[Item](), deque[Item]()
            for item in self._waiting:
                num_bytes += item[0].snapshot.data.nbytes if item[0].tier == tier else 0
                fits = len(batch) < MAX_BATCH and (num_bytes <= MAX_BATCH_BYTES or not batch)
                (batch if item[0].tier == tier and fits else rest).append(item)
            self._waiting = rest
            return batch
