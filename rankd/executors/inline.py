"""Measuring in the caller's thread, before submit returns: for tests and for looking for a fault."""

from __future__ import annotations

from concurrent.futures import Future

import torch

from rankd.executors.solver import OnFault, Solver
from rankd.executors.work import Work
from rankd.weights import Part, Settings


class InlineExecutor:
    num_slots = num_workers = 1

    def __init__(self, device: torch.device, on_fault: OnFault, settings: Settings) -> None:
        self._solver = Solver(device, on_fault, settings)

    @property
    def device(self) -> torch.device:
        return self._solver.device

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return (self.device,)

    def submit(self, work: Work) -> Future[list[Part]]:
        future: Future[list[Part]] = Future()
        try:
            future.set_result(self._solver.measure(work))
        except Exception as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass
