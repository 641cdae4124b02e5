"""Real daemons as processes, on sockets that no other test has; each must stop with 0 when it is told to."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import fork_server
import pytest

STOP_SECONDS = 60


@dataclass
class Served:
    """A running `rankd serve`."""

    process: subprocess.Popen[str]
    url: str
    ready: dict[str, str]
    log: Path

    def stop(self, signum: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signum)
        return self.process.wait(STOP_SECONDS)


Serve = Callable[..., Served]


def environment() -> dict[str, str]:
    """The test's own, without settings of rankd that the machine may have."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RANKD_")}


@pytest.fixture
def directory() -> Iterator[Path]:
    """A short one: a socket's path has at most 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="rk") as path:
        yield Path(path)


@pytest.fixture
def serve(directory: Path) -> Iterator[Serve]:
    """Starts daemons: serve("--device", "cpu", …) on an ipc URL, or with url=…"""
    started: list[Served] = []

    def start(*options: str, url: str = f"ipc://{directory}/d") -> Served:
        log = directory / f"daemon{len(started)}.log"
        command = [sys.executable, "-m", "rankd", "serve", "--url", url]
        command += [] if "--http" in options else ["--http", "off"]
        with log.open("w") as stderr:
            process = fork_server.Popen(
                [*command, *options], stdout=subprocess.PIPE, stderr=stderr, text=True, env=environment()
            )
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("ready "), log.read_text()
        served = Served(process, url, dict(part.split("=", 1) for part in line.split()[1:]), log)
        started.append(served)
        return served

    yield start
    codes = []
    for served in started:
        killed = served.process.poll() == -signal.SIGKILL
        codes.append(0 if killed else served.stop())
        assert served.process.stdout is not None
        served.process.stdout.close()
    assert codes == [0] * len(codes), "\n".join(served.log.read_text() for served in started)
