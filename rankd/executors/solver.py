"""Measuring on one device, and what happens where that fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import torch

from rankd.engine import WarmStarts
from rankd.executors.work import Task
from rankd.spectrum import LinAlgError
from rankd.weights import Part, Settings, measure_weights

log = logging.getLogger("rankd.executors")

CPU = torch.device("cpu")

MEMORY_SHARE = 0.25
"""Of the GPU's free memory, for one batch with what it takes to work on it."""

CPU_BATCH_BYTES = 256 << 20
"""The same on a CPU, which gains nothing from larger batches: a stack of a hundred large matrices is not estimated at
once."""

OnFault = Callable[[str, str], None]
"""Takes a name of `rankd.faults.KINDS` and what was seen; called on whatever thread measures."""

Outcome = list[Part] | Exception


class MeasureError(RuntimeError):
    """This one snapshot cannot be measured here, for want of memory or because no method converges; others can."""


class Solver:
    """Measures on `device`; on the CPU what does not fit there, and everything once the device has failed.

    A GPU that has failed stays failed for its process, so it is not tried again: that takes a new daemon. One thread at
    a time, but on the CPU.
    """

    def __init__(self, device: torch.device, on_fault: OnFault, settings: Settings) -> None:
        self.device = device
        self._on_fault = on_fault
        self._settings = settings
        self._warm = WarmStarts()

    def measure(self, task: Task) -> list[Part]:
        """Raises MeasureError, and what is a mistake of ours."""
        (outcome,) = self.measure_all([task])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def measure_all(self, tasks: Sequence[Task]) -> list[Outcome]:
        """Of each its parts or why there are none. Where a batch fails, its halves are tried, then the CPU. What a
        device was at when it was lost goes to the CPU too: it may be what brought the device down."""
        if self.device == CPU:
            return [self._on_cpu(task) for task in tasks]
        found = self._try_device(tasks)
        if found is not None:
            return found
        if len(tasks) == 1 or self.device == CPU:
            return [self._on_cpu(task) for task in tasks]
        half = len(tasks) // 2
        return [*self.measure_all(tasks[:half]), *self.measure_all(tasks[half:])]

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

    def _try_device(self, tasks: Sequence[Task]) -> list[Outcome] | None:
        """None where it has to be done in smaller batches, or on the CPU."""
        device = self.device
        try:
            max_bytes = MEMORY_SHARE * _free_bytes(device)
            return list(measure_weights([task.on(device) for task in tasks], self._settings, self._warm, max_bytes))
        except LinAlgError as error:
            log.warning("no method converged on %s, measured by itself or on the CPU: %s", device, error)
            return None
        except (MemoryError, RuntimeError, AssertionError) as error:  # torch asserts that there is a CUDA at all
            text = str(error).strip().partition("\n")[0][:200]
            if _is_want_of_memory(error):
                where = "in smaller batches" if len(tasks) > 1 else "on the CPU"
                log.warning("not enough memory on %s, measured %s: %s", device, where, text)
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()  # for whoever else wants it
                return None
            self.device = CPU
            log.error("%s failed, measuring goes on elsewhere: %s", device, text)
            self._on_fault("device", f"{device} failed: {text}")
            return None
        except Exception as error:  # ours, in one of them: the others are none the worse
            return [error] if len(tasks) == 1 else None


def _free_bytes(device: torch.device) -> int:
    """What is free for us: on the device, and in the blocks that torch keeps."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def _caused(error: MeasureError, cause: BaseException) -> MeasureError:
    error.__cause__ = cause
    return error


def _is_want_of_memory(error: BaseException) -> bool:
    """Of Python, NumPy, torch on the CPU (a plain RuntimeError), on a GPU, or one of its libraries (likewise)."""
    words = ("can't allocate memory", "not enough memory", "out of memory", "ALLOC_FAILED")
    return isinstance(error, MemoryError | torch.cuda.OutOfMemoryError) or any(word in str(error) for word in words)
