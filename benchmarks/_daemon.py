"""`rankd serve` as a process that can be killed and started again, and what the kernel knows of it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

READY_SECONDS = 120.0
STOP_SECONDS = 30.0


def clean_environment() -> dict[str, str]:
    """This process's, less the settings of rankd that it may have, and with one thread for linear algebra."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RANKD_")}
    return {**kept, "OMP_NUM_THREADS": "1"}


class Daemon:
    """A daemon on an ipc URL with a history, all of it in `directory` (a short path: sockets have 107 bytes).

    `config` is the text of a TOML file; `http`: whether it listens for HTTP, on a port of its own. Its stdin is our
    pipe, so it does not outlive us.
    """

    def __init__(self, directory: Path, config: str = "", http: bool = False) -> None:
        self.url = f"ipc://{directory}/s"
        self.data = directory / "data"
        self.log = directory / "daemon.log"
        self._out = directory / "daemon.out"
        toml = directory / "rankd.toml"
        toml.write_text(config)
        self._command = [sys.executable, "-m", "rankd", "serve", "--url", self.url, "--data", str(self.data)]
        self._command += [
            "--http",
            "127.0.0.1:0" if http else "off",
            "--device",
            "cpu",
            "--config",
            str(toml),
            "--log-level",
            "warning",
        ]
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    def start(self) -> None:
        """Does not wait until it is ready."""
        with self._out.open("w") as out, self.log.open("a") as log:
            self._process = subprocess.Popen(
                [*self._command, "--while-stdin"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=log,
                env=clean_environment(),
                start_new_session=True,  # Ctrl-C is for us, who stop it in order
            )

    @property
    def ready(self) -> bool:
        return self._out.read_text().startswith("ready ")

    @property
    def http(self) -> str:
        """Its base URL, once it is ready."""
        return dict(part.split("=", 1) for part in self._out.read_text().split()[1:])["http"]

    def wait_ready(self) -> float:
        """The seconds that it took from now."""
        started = time.monotonic()
        while not self.ready:
            self.check()
            if time.monotonic() - started > READY_SECONDS:
                raise RuntimeError(f"no daemon after {READY_SECONDS} s: {self.last_words()}")
            time.sleep(0.02)
        return time.monotonic() - started

    def check(self) -> None:
        """RuntimeError where it has ended by itself."""
        code = self._running().poll()
        if code is not None:
            raise RuntimeError(f"the daemon ended by itself with {code}: {self.last_words()}")

    def kill(self) -> None:
        """SIGKILL; it must still have been running."""
        self.check()
        self._end(signal.SIGKILL)

    def stop(self) -> int:
        """SIGTERM, and its exit code."""
        self.check()
        return self._end(signal.SIGTERM)

    def close(self) -> None:
        """Whatever state it is in, it is gone afterwards."""
        if self._process is not None and self._process.poll() is None:
            self._end(signal.SIGKILL)

    def last_words(self) -> str:
        return self.log.read_text()[-2000:]

    def rss_bytes(self) -> int:
        """Resident memory now."""
        return _status_bytes(self.pid, "VmRSS")

    def peak_rss_bytes(self) -> int:
        return _status_bytes(self.pid, "VmHWM")

    def num_open_files(self) -> int:
        return sum(1 for _ in Path(f"/proc/{self.pid}/fd").iterdir())

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError("start() comes first")
        return self._process

    def _end(self, signum: int) -> int:
        process = self._running()
        process.send_signal(signum)
        code = process.wait(STOP_SECONDS)
        assert process.stdin is not None
        process.stdin.close()
        return code


def _status_bytes(pid: int, key: str) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) << 10
