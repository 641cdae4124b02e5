"""The daemon's end of its Ray driver: starting the process, talking to it, ending it."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

from rankd.config import RayConfig
from rankd.executors.packed import describe
from rankd.executors.ray.frames import receive, send
from rankd.executors.ray.home import Home
from rankd.executors.work import Work
from rankd.plan import MeasureConfig

log = logging.getLogger("rankd.ray")

JOIN_SECONDS = 90.0
"""Until the first worker is there: Ray's processes take some seconds to start, and each worker some to import torch; 30
in all on two busy cores."""

SILENCE_SECONDS = 20.0
"""The driver looks at the cluster every two seconds, and says so. Ray itself waits for a minute and longer."""

LEAVE_SECONDS = 4.0
"""Of the 20 that stopping has; draining and the history take up to 15."""


class LinkError(Exception):
    """There is no cluster, or it is lost."""


@dataclass(frozen=True, slots=True)
class Target:
    """What to join. `address`: "ray://HOST:PORT", "HOST:PORT", or "" for whatever is found. `may_start`: a private Ray
    of so many cores, on these GPUs, where nothing is found. `source`: whose setting that is, for errors."""

    address: str
    may_start: bool
    num_cores: int
    gpus: tuple[int, ...]
    use_gpus: bool
    source: str = "executor='ray'"


class Link:
    """A driver process, from its start. `join` comes first; then one thread may send while another one receives. Any
    thread may close it."""

    def __init__(self, target: Target, measure: MeasureConfig, limits: RayConfig) -> None:
        self.address, self.num_workers, self.on_gpu, self.max_bytes = "", 1, False, 0
        self._home = Home() if target.may_start else None
        directory = "" if self._home is None else str(self._home.path)
        self._first_message = {**_first_message(target, measure, limits), "directory": directory}
        self._last_words: deque[str] = deque(maxlen=10)
        self._end, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as cleanup:
            if self._home is not None:
                cleanup.callback(self._home.remove)
            self._process = _spawn(theirs.fileno(), target.gpus)
            cleanup.pop_all()
        threading.Thread(target=self._read_stderr, daemon=True).start()

    def join(self, seconds: float) -> None:
        """LinkError where that fails, or takes longer."""
        try:
            self._end.settimeout(seconds)
            send(self._end, self._first_message)
            told = self._wait_joined(time.monotonic() + seconds)
            self._end.settimeout(SILENCE_SECONDS)
        except OSError as error:
            raise LinkError(f"the Ray driver ended: {error}") from error
        self.address = str(told["address"])
        self.num_workers, self.on_gpu = max(1, int(told["num_workers"])), bool(told["on_gpu"])
        self.max_bytes = int(told["max_bytes"])

    def send(self, number: int, work: Work) -> None:
        """LinkError where the driver is gone, or takes nothing."""
        description, arrays = describe(work)
        layer = "\0".join(work.snapshot.key)
        try:
            send(self._end, {"number": number, "layer": layer, "work": description}, arrays)
        except OSError as error:
            raise LinkError(f"the Ray driver takes nothing: {error}") from error

    def receive(self) -> dict[str, Any]:
        """The next message; LinkError where the cluster or the driver is lost."""
        try:
            told, _ = receive(self._end)
        except TimeoutError:
            raise LinkError(f"the Ray cluster has not answered for {SILENCE_SECONDS:.0f} s") from None
        except (OSError, EOFError, ValueError) as error:
            words = self._last_words[-1] if self._last_words else str(error)
            raise LinkError(f"the Ray driver ended: {words}") from error
        if told["kind"] == "failed":
            raise LinkError(_in_short(str(told["text"])))
        return told

    def close(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)
        try:
            self._process.wait(LEAVE_SECONDS)
        except subprocess.TimeoutExpired:
            log.warning("the Ray driver does not leave; killed")
        with contextlib.suppress(ProcessLookupError):  # with what it started
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._end.close()
        if self._home is not None:
            self._home.remove()

    def _wait_joined(self, until: float) -> dict[str, Any]:
        while (left := until - time.monotonic()) > 0:
            self._end.settimeout(left)
            try:
                told = self.receive()
            except LinkError as error:
                if isinstance(error.__context__, TimeoutError):
                    break
                raise
            if told["kind"] == "joined":
                return told
        raise LinkError("no worker of the Ray cluster is there in time: it does not answer, or has no core or GPU free")

    def _read_stderr(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as lines:
            for line in lines:
                if text := line.rstrip():
                    self._last_words.append(text[:300])
                    log.debug("driver: %s", text)


def _in_short(text: str) -> str:
    """Ray's errors are whole tracebacks: what it is about, and what was raised."""
    first, *others = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{first[:300]} … {others[-1][:300]}" if others else first[:300]


def _spawn(descriptor: int, gpus: tuple[int, ...]) -> subprocess.Popen[str]:
    environment = {"RAY_USAGE_STATS_ENABLED": "0", **os.environ}
    shown = environment.get("CUDA_VISIBLE_DEVICES", "")
    names = [name.strip() for name in shown.split(",")] if shown else []
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(names[gpu] if names else str(gpu) for gpu in gpus)
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "rankd.executors.ray.driver", str(descriptor)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        pass_fds=[descriptor],
        env=environment,
        start_new_session=True,  # Ctrl-C is for the daemon, which ends it in order
    )


def _first_message(target: Target, measure: MeasureConfig, limits: RayConfig) -> dict[str, Any]:
    return {
        "address": target.address,
        "num_cores": target.num_cores if target.may_start else 0,
        "num_gpus": len(target.gpus),
        "store_bytes": 2 * limits.max_bytes,
        "measure": {**asdict(measure), "split": dict(measure.split)},
        "use_gpus": target.use_gpus,
        "max_workers": limits.max_workers,
        "max_bytes": limits.max_bytes,
    }
