"""What runs in a process of the Ray cluster: a Solver, with its warm starts, on one GPU or one core."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from typing import Any

import torch

from rankd.executors.packed import Array, pack_outcome, work_of
from rankd.executors.solver import CPU, Solver
from rankd.executors.threads import prepare_worker
from rankd.plan import MeasureConfig
from rankd.weights import settings_of

VERSIONS = {"rankd": version("rankd"), "torch": torch.__version__.partition("+")[0]}
"""Those that numbers depend on."""


class Worker:
    """Made an actor by the driver, which holds it and calls it, one call at a time."""

    def __init__(self, measure: Mapping[str, Any], on_gpu: bool) -> None:
        """`measure`: the table [measure]. `on_gpu`: Ray has given this process a GPU, and shows it no other."""
        prepare_worker()
        warnings.filterwarnings("ignore", "The given buffer is not writable")  # nothing is written into snapshots
        self._faults: list[str] = []
        device = torch.device("cuda", 0) if on_gpu else CPU
        self._solver = Solver(device, lambda _, text: self._faults.append(text), settings_of(MeasureConfig(**measure)))
        self._solver.begin()

    def hello(self) -> dict[str, Any]:
        return {"versions": VERSIONS, "host": socket.gethostname(), "pid": os.getpid()}

    def measure(
        self, arrays: Sequence[Array], places: Sequence[int], descriptions: Sequence[Mapping[str, Any]]
    ) -> tuple[list[bytes], list[str]]:
        """Outcomes as `pack_outcome` packs them, and what has failed of the device since the last call.

        `arrays` lie in the object store, and are read where they are; those of a work begin at its place."""
        works = [
            work_of(description, arrays[place : place + len(description["snapshots"])])
            for place, description in zip(places, descriptions, strict=True)
        ]
        outcomes = [pack_outcome(outcome) for outcome in self._solver.measure_all(works)]
        faults, self._faults = self._faults, []
        return outcomes, faults
