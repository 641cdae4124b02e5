"""A process that measures on one device for the daemon. It ends with the daemon, however that ends, and when its device
is lost: a new process has a new CUDA context.

    python -m rankd.executors.apart.child DESCRIPTOR PARENT_PID
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import torch

from rankd.executors.apart.frames import receive, send
from rankd.executors.apart.memory import Mappings
from rankd.executors.packed import pack_outcome, settings_from, work_of
from rankd.executors.solver import Solver
from rankd.executors.threads import prepare_worker

OOM_SCORE = 500
"""Of 1,000, added to how readily the kernel ends a process for want of memory: sooner this one, which is started again,
than the daemon or the training."""

MAX_LOG_LINES = 100
"""Between two messages."""

_PR_SET_PDEATHSIG = 1


class KeptLog(logging.Handler):
    """Lines to be logged by the daemon, whose stderr has one format."""

    def __init__(self) -> None:
        super().__init__()
        self._lines: list[tuple[int, str, str]] = []

    def emit(self, record: logging.LogRecord) -> None:
        if len(self._lines) < MAX_LOG_LINES:
            self._lines.append((record.levelno, record.name, record.getMessage()))

    def take(self) -> list[tuple[int, str, str]]:
        lines, self._lines = self._lines, []
        return lines


class Measurer:
    """Answers batches, one after the other, until the daemon is gone or the device is lost."""

    def __init__(self, end: socket.socket, told: Mapping[str, Any]) -> None:
        self._end = end
        self._log = KeptLog()
        logging.basicConfig(level=told["level"], handlers=[self._log])
        self._device = torch.device(told["device"])
        self._fault: str | None = None
        self._solver = Solver(self._device, self._on_fault, settings_from(told["settings"]))
        self._mappings = Mappings(self._device)

    def run(self) -> None:
        """EOFError when the daemon is gone."""
        try:
            self._solver.begin()
            if self._device.type == "cuda":
                torch.ones(1, device=self._device)
        except (RuntimeError, AssertionError) as error:  # torch asserts that there is a CUDA at all
            self._tell(failed=str(error).strip().partition("\n")[0][:200])
            return
        self._tell(free_bytes=self._solver.free_bytes())
        while self._fault is None:
            message, descriptor = receive(self._end)
            self._answer(message, descriptor)

    def _answer(self, message: Mapping[str, Any], descriptor: int | None) -> None:
        place = message["buffer"]
        if descriptor is not None:
            self._mappings.replace(place, descriptor)
        arrays = iter(self._mappings.arrays(place, message["ranges"]))
        works = [work_of(told, [next(arrays) for _ in told["snapshots"]]) for told in message["works"]]
        outcomes = [pack_outcome(outcome) for outcome in self._solver.try_all(works)]
        self._tell(outcomes=outcomes, free_bytes=self._solver.free_bytes(), fault=self._fault)

    def _tell(self, **message: Any) -> None:
        send(self._end, {**message, "log": self._log.take()})

    def _on_fault(self, name: str, text: str | None) -> None:
        self._fault = text


def main() -> NoReturn:
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # meant for the daemon, which still needs us then
        signal.signal(signum, signal.SIG_IGN)
    end, parent = socket.socket(fileno=int(sys.argv[1])), int(sys.argv[2])
    _end_with(parent)
    prepare_worker()
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    with contextlib.suppress(EOFError, ConnectionError):
        told, _ = receive(end)
        Measurer(end, told).run()
    os._exit(0)  # nothing here is worth keeping, and a context that is dead may hang at the interpreter's end


def _end_with(parent: int) -> None:
    """Also in the midst of a solve, and where the daemon is killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it was quicker
        os._exit(0)


if __name__ == "__main__":
    main()
