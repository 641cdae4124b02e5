"""Measuring on one device, and what happens where that fails."""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch

from rankd.engine import WarmStarts
from rankd.executors.scheduling import MEMORY_SHARE
from rankd.executors.work import Task
from rankd.spectrum import LinAlgError
from rankd.weights import Part, Settings, measure_weights

log = logging.getLogger("rankd.executors")

CPU = torch.device("cpu")

CPU_BATCH_BYTES = 256 << 20
"""The same on a CPU, which gains nothing from larger batches: a stack of a hundred large matrices is not estimated at
once."""

OnFault = Callable[[str, str], None]
"""Takes a name of `rankd.faults.KINDS` and what was seen; called on whatever thread measures."""

OnChange = Callable[[str, str | None], None]
"""The same; None where it is over."""

Outcome = list[Part] | Exception


class MeasureError(RuntimeError):
    """This one snapshot cannot be measured here, for want of memory or because no method converges; others can."""


class NotHereError(RuntimeError):
    """The device has not measured it, for want of memory, because no method converged, because the device was lost at
    it, or had been lost before ("gone"); another may. `reason` says which."""

    def __init__(self, reason: Literal["memory", "unsolved", "lost", "gone"]) -> None:
        super().__init__(reason)
        self.reason = reason


class Solver:
    """Measures on `device`; on the CPU what does not fit there, and everything once the device has failed.

    A GPU that has failed stays failed for its process, so it is not tried again: that takes a new one. One thread at a
    time, but on the CPU.
    """

    num_threads = 1

    def __init__(
        self, device: torch.device, on_fault: OnFault, settings: Settings, warm: WarmStarts | None = None
    ) -> None:
        """`warm`: shared by solvers that measure the same layers; they lie in the CPU's memory, so that a layer may go
        from device to device."""
        self.device = device
        self.is_lost = False
        self._on_fault = on_fault
        self._settings = settings
        self._warm = WarmStarts() if warm is None else warm

    def begin(self) -> bool:
        """On the thread that is to measure; False where the device is lost for good."""
        device = self.device
        if device.type == "cuda" and device.index < torch.cuda.device_count():
            with contextlib.suppress(RuntimeError):  # its first batch says so
                torch.cuda.set_device(device)  # or each call changes devices, and GPU 0 has a context for nobody
        return not self.is_lost

    def close(self) -> None:
        pass

    def measure(self, task: Task) -> list[Part]:
        """Raises MeasureError, and what is a mistake of ours."""
        (outcome,) = self.measure_all([task])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def measure_all(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Of each its parts or why there are none, on the CPU what the device has not measured. What a device was at
        when it was lost goes to the CPU too: it may be what brought the device down."""
        outcomes = self.try_all(tasks)
        return [
            self._on_cpu(task) if isinstance(outcome, NotHereError) else outcome
            for task, outcome in zip(tasks, outcomes, strict=True)
        ]

    def try_all(self, tasks: Sequence[Task]) -> list[Outcome]:
        """The same, but a NotHereError for what the device has not measured. Where a batch fails, its halves are
        tried."""
        if self.device == CPU:
            return [self._on_cpu(task) for task in tasks]
        return self._halving(tasks)

    def free_bytes(self) -> float:
        """What is free for us on the device, also in the blocks that torch keeps; inf where nobody can say."""
        try:
            return math.inf if self.device == CPU else _free_bytes(self.device)
        except (RuntimeError, AssertionError):
            return math.inf

    def _halving(self, tasks: Sequence[Task]) -> list[Outcome]:
        if self.device == CPU:
            return [NotHereError("lost") for _ in tasks]
        found = self._try_device(tasks)
        if not isinstance(found, NotHereError):
            return found
        if len(tasks) == 1 or found.reason == "lost":
            return [NotHereError(found.reason) for _ in tasks]
        half = len(tasks) // 2
        return [*self._halving(tasks[:half]), *self._halving(tasks[half:])]

    def _on_cpu(self, task: Task) -> Outcome:
        try:
            return measure_weights([task.on(CPU)], self._settings, self._warm, CPU_BATCH_BYTES)[0]
        except LinAlgError as error:
            return _caused(MeasureError(f"no method converged: {error}"), error)
        except (MemoryError, RuntimeError) as error:
            if not _is_want_of_memory(error):
                return error
            shape = "×".join(map(str, task.shape))
            return _caused(MeasureError(f"not enough memory to measure a matrix of shape {shape}"), error)
        except Exception as error:
            return error

    def _try_device(self, tasks: Sequence[Task]) -> list[Outcome] | NotHereError:
        """NotHereError where it has to be done in smaller batches, or elsewhere."""
        device = self.device
        try:
            max_bytes = MEMORY_SHARE * _free_bytes(device)
            return list(measure_weights([task.on(device) for task in tasks], self._settings, self._warm, max_bytes))
        except LinAlgError as error:
            log.warning("no method converged on %s, measured by itself or on the CPU: %s", device, error)
            return NotHereError("unsolved")
        except (MemoryError, RuntimeError, AssertionError) as error:  # torch asserts that there is a CUDA at all
            return self._failed(error, len(tasks))
        except Exception as error:  # ours, in one of them: the others are none the worse
            return [error] if len(tasks) == 1 else NotHereError("unsolved")

    def _failed(self, error: BaseException, num_tasks: int) -> NotHereError:
        device, text = self.device, str(error).strip().partition("\n")[0][:200]
        where = "in smaller batches" if num_tasks > 1 else "elsewhere"
        if _is_want_of_memory(error):
            log.warning("not enough memory on %s, measured %s: %s", device, where, text)
            with contextlib.suppress(RuntimeError):
                torch.cuda.empty_cache()  # for whoever else wants it
            return NotHereError("memory")
        if _is_alive(device):  # a library's error, or ours, about one of them
            log.warning("%s could not measure it, measured %s: %s", device, where, text)
            return NotHereError("unsolved")
        self.device, self.is_lost = CPU, True
        log.error("%s failed, measuring goes on elsewhere: %s", device, text)
        self._on_fault("device", f"{device} failed: {text}")
        return NotHereError("lost")


def _is_alive(device: torch.device) -> bool:
    """Whether it still computes: what a process has lost answers everything with an error."""
    try:
        return float(torch.ones(1, device=device).add_(1)) == 2
    except torch.cuda.OutOfMemoryError:
        return True
    except (RuntimeError, AssertionError):
        return False


def _free_bytes(device: torch.device) -> int:
    """What is free for us: on the device, and in the blocks that torch keeps."""
    free, _ = torch.cuda.mem_get_info(device)
    stats = torch.cuda.memory_stats_as_nested_dict(device)  # memory_reserved() flattens all of them, each time
    if not stats:
        return free
    reserved, allocated = (int(stats[f"{name}_bytes"]["all"]["current"]) for name in ("reserved", "allocated"))
    return free + reserved - allocated


def _caused(error: MeasureError, cause: BaseException) -> MeasureError:
    error.__cause__ = cause
    return error


def _is_want_of_memory(error: BaseException) -> bool:
    """Of Python, NumPy, torch on the CPU (a plain RuntimeError), on a GPU, or one of its libraries (likewise)."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(word in str(error) for word in words)
