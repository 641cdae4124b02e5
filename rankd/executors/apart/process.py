"""The daemon's end of a process that measures: starting it, handing it batches, ending it."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from rankd.executors.apart.frames import receive, send
from rankd.executors.apart.memory import Buffer
from rankd.executors.packed import describe, describe_settings, outcome_of
from rankd.executors.solver import Outcome
from rankd.executors.work import Work
from rankd.weights import Settings

log = logging.getLogger("rankd.executors")

START_SECONDS = 120.0
"""Until a process is ready: importing torch and making a CUDA context take some seconds, more on a busy host."""

END_SECONDS = 10.0
"""For the kernel, to take away the memory and the context of a process that has ended."""

CLOSE_SECONDS = 0.5
"""The same at the daemon's end, which waits for nobody for long."""

NUM_LOOKS = 20
"""For an answer. Looks are counted and not time, which also passes while all are stopped: a job that was suspended, a
container that was paused."""


class ApartError(Exception):
    """The process is gone, or does not start; the text says what is known of why. `had_begun`: whether it may have been
    what it was handed."""

    def __init__(self, text: str, had_begun: bool = True) -> None:
        super().__init__(text)
        self.had_begun = had_begun


class Process:
    """A process that measures on `device`; to be waited for with `wait_ready`. Two threads may use it, each with a
    buffer: one is filled while what is in the other is measured."""

    def __init__(self, device: torch.device, settings: Settings, num_buffers: int) -> None:
        """OSError where no process can be had. To be called on a thread that lives as long as the process is to."""
        self._buffers: queue.SimpleQueue[Buffer] = queue.SimpleQueue()
        for place in range(num_buffers):
            self._buffers.put(Buffer(place))
        self._asking = threading.Lock()
        self.is_over = False
        self.fault: str | None = None
        """What it said of its device when it lost that; it is over then."""
        self.free_bytes = float("inf")
        self._end, theirs = socket.socketpair()
        self._answers = select.poll()
        self._answers.register(self._end, select.POLLIN)
        with theirs:
            try:
                self._process = _spawn(theirs.fileno())
            except OSError:
                self._end.close()
                raise
        self.pid = self._process.pid
        level = logging.getLogger().getEffectiveLevel()
        self._first = {"device": str(device), "settings": describe_settings(settings), "level": level}

    def wait_ready(self) -> None:
        """ApartError where it does not come to that."""
        with self._asking:
            told = self._exchange(self._first, None, START_SECONDS)
        if "failed" in told:
            raise ApartError(str(told["failed"]))

    def measure(self, works: Sequence[Work], max_seconds: float) -> list[Outcome] | None:
        """None where the process was gone before it was handed them. ApartError where that is seen now, or there is no
        answer in `max_seconds`; OSError where there is no memory to hand them over in."""
        told = [describe(work) for work in works]
        with self._buffer() as buffer:
            ranges, descriptor = buffer.fill([array for _, arrays in told for array in arrays])
            message = {"buffer": buffer.place, "ranges": ranges, "works": [description for description, _ in told]}
            try:
                with self._asking:
                    if self.is_over:
                        return None
                    if self._process.poll() is not None:
                        raise ApartError(self._how_it_ended(), had_begun=False)
                    answer = self._exchange(message, descriptor, max_seconds)
            finally:
                if descriptor is not None:
                    os.close(descriptor)
        return [outcome_of(packed) for packed in answer["outcomes"]]

    def close(self) -> None:
        """Ends it, whatever state it is in. Any thread may call, more than once."""
        self.is_over = True
        self._process.kill()
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)  # whoever waits for its answer waits no more
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(CLOSE_SECONDS)
        if self._asking.acquire(timeout=CLOSE_SECONDS):
            self._end.close()
            self._asking.release()

    @contextlib.contextmanager
    def _buffer(self) -> Iterator[Buffer]:
        buffer = self._buffers.get()
        try:
            yield buffer
        finally:
            self._buffers.put(buffer)

    def _exchange(self, message: dict[str, Any], descriptor: int | None, max_seconds: float) -> dict[str, Any]:
        """ApartError where the process is gone, or hangs: then the caller is to close it."""
        try:
            self._end.settimeout(max_seconds)
            send(self._end, message, descriptor)
            self._wait_for_answer(max_seconds)
            answer, _ = receive(self._end)
        except TimeoutError:
            self.is_over = True
            raise ApartError(f"its process gave no answer within {max_seconds:.0f} s and is ended") from None
        except (OSError, EOFError, ValueError) as error:
            self.is_over = True
            raise ApartError(self._how_it_ended()) from error
        except BaseException:
            self.is_over = True  # or the next to ask would hear this one's answer
            raise
        for level, name, text in answer["log"]:
            logging.getLogger(name).log(level, "%s", text)
        self.free_bytes = answer.get("free_bytes", self.free_bytes)
        self.fault = answer.get("fault")
        self.is_over = self.is_over or self.fault is not None
        return answer

    def _wait_for_answer(self, max_seconds: float) -> None:
        for _ in range(NUM_LOOKS):
            if self._answers.poll(1000 * max_seconds / NUM_LOOKS):
                return
        raise TimeoutError

    def _how_it_ended(self) -> str:
        try:
            code = self._process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            return "its process does not answer"
        if code >= 0:
            return f"its process ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (", perhaps for want of memory" if name == "SIGKILL" else "")


def _spawn(descriptor: int) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "rankd.executors.apart.child", str(descriptor), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=2,  # the daemon's stdout has one line
        pass_fds=[descriptor],
        process_group=0,  # Ctrl-C is for the daemon
    )
