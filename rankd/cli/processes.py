"""A private daemon for one command: a process of its own, on sockets in a directory that only this user sees."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from typing import Any

from rankd.cli.common import PROBLEM, leave

STOP_SECONDS = 25.0
"""`rankd serve` finishes within 20 s of a SIGTERM."""


@contextlib.contextmanager
def private_daemon(*options: str) -> Iterator[str]:
    """The URL of a `rankd serve` that lives as long as the block; it is told to finish what it measures at the end.

    Leaves with 1 and the daemon's own words where it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        url = f"ipc://{directory}"
        command = [sys.executable, "-m", "rankd", "serve", "--url", url, "--http", "off", "--log-level", "warning"]
        # Its own session: Ctrl-C is for the command; the daemon is stopped when the command is over.
        daemon = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            assert daemon.stdout is not None
            if not daemon.stdout.readline().startswith("ready "):
                leave(f"the daemon did not start (exit code {daemon.wait()})", PROBLEM)
            yield url
        finally:
            stop(daemon)


def stop(process: subprocess.Popen[str]) -> None:
    """SIGTERM, and SIGKILL where that is not enough."""
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


class AlertListener:
    """Follows a daemon's alerts in a thread and hands each to `show`, until the daemon has stopped or `close`."""

    def __init__(self, url: str, run: str | None = None) -> None:
        from rankd_client import subscribe

        self.alerts: list[Mapping[str, Any]] = []
        self._subscription = subscribe(endpoint=url, run=run)
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def show(self, alert: Mapping[str, Any]) -> None:
        """Called in the listener's thread for each alert as it comes."""

    def close(self, timeout_seconds: float = 2.0) -> None:
        """Waits for what the daemon still says while it stops, then ends."""
        self._thread.join(timeout_seconds)
        self._subscription.close()
        self._thread.join(timeout_seconds)

    def _follow(self) -> None:
        for alert in self._subscription:
            self.alerts.append(alert)
            self.show(alert)
