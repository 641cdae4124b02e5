"""Where measuring runs. One contract, a table of names; each entry gives the same numbers."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import torch

from rankd.config import ConfigError
from rankd.metrics import compute_metrics
from rankd.records import Snapshot
from rankd.spectrum import LinAlgError, measure_spectrum
from rankd.summary import summarise

log = logging.getLogger("rankd.executors")

TORCH_DTYPES = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""The wire's dtype names that carry no scales. A fixed table: a name from the network is never looked up in torch."""

NICENESS = 10
"""Measuring yields to the trainer that may share these cores; intake, which is light, does not."""

IDLE_GPU_BYTES = 1 << 30
"""A GPU with more in use than a driver's own share belongs to somebody, even if we cannot see their processes."""


CPU = torch.device("cpu")

OnFault = Callable[[str, str], None]
"""Takes a name of `rankd.faults.KINDS` and what was seen; called on whatever thread measures."""


class MeasureError(RuntimeError):
    """This one matrix cannot be measured here, for want of memory or because no method converges; others can."""


@dataclass(frozen=True, slots=True)
class Measured:
    """`summary`: the spectrum as `rankd.summary.summarise` packs it."""

    metrics: dict[str, float | None]
    method: str
    seconds: float
    summary: bytes = b""


class Executor(Protocol):
    """Runs measurements, `num_slots` of them at a time. `submit` never blocks; the future holds a Measured, or a
    MeasureError."""

    num_slots: int

    @property
    def device(self) -> torch.device:
        """Where the next one is measured: the CPU from when a GPU was lost."""

    def submit(self, snapshot: Snapshot) -> Future[Measured]: ...

    def close(self) -> None: ...


def measure(snapshot: Snapshot, device: torch.device) -> Measured:
    """Singular values and metrics of `snapshot`, a matrix (size(0), -1) of its wire dtype, computed on `device`."""
    started = time.perf_counter()
    matrix = torch.frombuffer(snapshot.data, dtype=TORCH_DTYPES[snapshot.wire_dtype])
    spectrum = measure_spectrum(matrix.reshape(snapshot.rows, snapshot.cols).to(device))
    metrics, summary = compute_metrics(spectrum), summarise(spectrum)
    return Measured(metrics, spectrum.method, time.perf_counter() - started, summary)


class Solver:
    """Measures on `device`; on the CPU what does not fit there, and everything once the device has failed.

    A GPU that has failed stays failed for its process, so it is not tried again: that takes a new daemon.
    """

    def __init__(self, device: torch.device, on_fault: OnFault) -> None:
        self.device = device
        self._on_fault = on_fault

    def measure(self, snapshot: Snapshot) -> Measured:
        """Raises MeasureError."""
        if self.device != CPU and (measured := self._try_device(snapshot)) is not None:
            return measured
        try:
            return measure(snapshot, CPU)
        except LinAlgError as error:
            raise MeasureError(f"no method converged: {error}") from error
        except (MemoryError, RuntimeError) as error:
            if not _is_want_of_memory(error):
                raise
            shape = "×".join(map(str, snapshot.shape))
            raise MeasureError(f"not enough memory to measure a matrix of shape {shape}") from error

    def _try_device(self, snapshot: Snapshot) -> Measured | None:
        """None where it has to be done on the CPU."""
        device = self.device
        try:
            return measure(snapshot, device)
        except LinAlgError as error:
            raise MeasureError(f"no method converged: {error}") from error
        except (MemoryError, RuntimeError, AssertionError) as error:  # torch asserts that there is a CUDA at all
            text = str(error).strip().partition("\n")[0][:200]
            if _is_want_of_memory(error):
                log.warning("not enough memory on %s, measured on the CPU: %s", device, text)
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()  # for whoever else wants it
                return None
            self.device = CPU
            log.error("%s failed, measuring goes on on the CPU: %s", device, text)
            self._on_fault("device", f"{device} failed: {text}")
            return None


def _is_want_of_memory(error: BaseException) -> bool:
    """Of Python, NumPy, torch on the CPU (a plain RuntimeError), on a GPU, or one of its libraries (likewise)."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(word in str(error) for word in words)


class InlineExecutor:
    """Measures in the caller's thread, before submit returns: for tests and for looking for a fault."""

    num_slots = 1

    def __init__(self, device: torch.device, on_fault: OnFault) -> None:
        self._solver = Solver(device, on_fault)

    @property
    def device(self) -> torch.device:
        return self._solver.device

    def submit(self, snapshot: Snapshot) -> Future[Measured]:
        future: Future[Measured] = Future()
        try:
            future.set_result(self._solver.measure(snapshot))
        except MeasureError as error:
            future.set_exception(error)
        return future

    def close(self) -> None:
        pass


class ThreadExecutor:
    """Worker threads of one intra-op thread each: two intra-op threads on busy cores were up to 15 times slower.

    On a GPU one worker: exact solves side by side gained nothing. On a CPU at least two, so that one huge layer does
    not hold up the others, and at most half the cores otherwise, which are the trainer's.
    """

    def __init__(self, device: torch.device, on_fault: OnFault) -> None:
        self._solver = Solver(device, on_fault)
        self.num_slots = 1 if device.type == "cuda" else max(2, len(os.sched_getaffinity(0)) // 2)
        self._pool = ThreadPoolExecutor(self.num_slots, "measure", initializer=_prepare_worker)

    @property
    def device(self) -> torch.device:
        return self._solver.device

    def submit(self, snapshot: Snapshot) -> Future[Measured]:
        return self._pool.submit(self._solver.measure, snapshot)

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)


def _prepare_worker() -> None:
    torch.set_num_threads(1)
    with contextlib.suppress(OSError, AttributeError):  # a courtesy, where the platform has it
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)


EXECUTORS: dict[str, Callable[[torch.device, OnFault], Executor]] = {
    "threads": ThreadExecutor,
    "inline": InlineExecutor,
}


def choose_device(name: str) -> torch.device:
    """`name` is cpu, cuda:N or auto: the CPU unless there is a GPU that no other process uses, because memory taken
    from a trainer's GPU can end the training. ConfigError where cuda:N is not there."""
    if name != "auto":
        device = torch.device(name)
        if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
            raise ConfigError(f"device={name!r}: expected one of the {torch.cuda.device_count()} GPUs that are there")
        return device
    for index in range(torch.cuda.device_count()):
        if _is_idle(index):
            return torch.device("cuda", index)
    return CPU


def _is_idle(index: int) -> bool:
    """Whether nobody uses the GPU, as its driver's own tool says; where that cannot be asked, somebody might."""
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    uuid = f"GPU-{torch.cuda.get_device_properties(index).uuid}"
    try:
        users = _ask(smi, uuid, "--query-compute-apps=pid")
        used_bytes = float(_ask(smi, uuid, "--query-gpu=memory.used")) * 2**20
        return not users and used_bytes < IDLE_GPU_BYTES
    except (OSError, subprocess.SubprocessError, ValueError):
        return False


def _ask(smi: str, uuid: str, query: str) -> str:
    command = [smi, f"--id={uuid}", query, "--format=csv,noheader,nounits"]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
