"""Measuring on one device, and what happens where that fails."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence

import torch

from rankd.engine import WarmStarts
from rankd.executors.work import Work, weight_of
from rankd.spectrum import LinAlgError
from rankd.weights import Part, Settings, measure_weights

log = logging.getLogger("rankd.executors")

CPU = torch.device("cpu")

MEMORY_SHARE = 0.25
"""Of the GPU's free memory, for one batch with what it takes to work on it."""

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

    def measure(self, work: Work) -> list[Part]:
        """Raises MeasureError, and what is a mistake of ours."""
        (outcome,) = self.measure_all([work])
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def measure_all(self, works: Sequence[Work]) -> list[Outcome]:
        """Of each its parts or why there are none. Where a batch does not fit, its halves are tried, and then the CPU."""
        if self.device == CPU:
            return [self._on_cpu(work) for work in works]
        found = self._try_device(works)
        if found is not None:
            return list(found)
        if len(works) == 1 or self.device == CPU:
            return [self._on_cpu(work) for work in works]
        half = len(works) // 2
        return [*self.measure_all(works[:half]), *self.measure_all(works[half:])]

    def _on_cpu(self, work: Work) -> Outcome:
        try:
            return measure_weights([weight_of(work, CPU)], self._settings, self._warm)[0]
        except LinAlgError as error:
            return _caused(MeasureError(f"no method converged: {error}"), error)
        except (MemoryError, RuntimeError) as error:
            if not _is_want_of_memory(error):
                return error
            shape = "×".join(map(str, work.snapshot.shape))
            return _caused(MeasureError(f"not enough memory to measure a matrix of shape {shape}"), error)
        except Exception as error:
            return error

    def _try_device(self, works: Sequence[Work]) -> list[list[Part]] | None:
        """None where it has to be done in smaller batches, or on the CPU."""
        device = self.device
        try:
            max_bytes = MEMORY_SHARE * _free_bytes(device)
            return measure_weights([weight_of(work, device) for work in works], self._settings, self._warm, max_bytes)
        except LinAlgError as error:
            log.warning("no method converged on %s, measured by itself or on the CPU: %s", device, error)
            return None
        except (MemoryError, RuntimeError, AssertionError) as error:  # torch asserts that there is a CUDA at all
            text = str(error).strip().partition("\n")[0][:200]
            if _is_want_of_memory(error):
                where = "in smaller batches" if len(works) > 1 else "on the CPU"
                log.warning("not enough memory on %s, measured %s: %s", device, where, text)
                with contextlib.suppress(RuntimeError):
                    torch.cuda.empty_cache()  # for whoever else wants it
                return None
            self.device = CPU
            log.error("%s failed, measuring goes on elsewhere: %s", device, text)
            self._on_fault("device", f"{device} failed: {text}")
            return None


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
