"""A private daemon for one command: a process of its own, on sockets in a directory that only this user sees."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from types import FrameType
from typing import Any

from rankd.cli.common import PROBLEM, leave

STOP_SECONDS = 25.0
"""`rankd serve` finishes within 20 s of a SIGTERM."""

LAST_WORDS_SECONDS = 0.3
"""What a daemon sent before it ended is in this process's socket by then; reading it takes milliseconds."""


@contextlib.contextmanager
def private_daemon(*options: str, listener: AlertListener | None = None) -> Iterator[str]:
    """The URL of a `rankd serve` that lives as long as the block; it is told to finish what it measures at the end.

    `listener` hears all of its alerts, those of the end too. Leaves with 1 and the daemon's own words where it does not
    start.
    """
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        url = f"ipc://{directory}"
        command = [sys.executable, "-m", "rankd", "serve", "--url", url, "--http", "off", "--log-level", "warning"]
        # A rankd.toml that lies about is for the daemon of a host; one that was named is meant for this one too.
        command += ["--config", os.environ.get("RANKD_CONFIG") or "off"]
        # Its own session: Ctrl-C is for the command, and the daemon is stopped when the command is over. Its stdin is
        # our end of a pipe: should we be killed, it stops as well.
        pipe = subprocess.PIPE
        daemon = subprocess.Popen(
            [*command, "--while-stdin", *options],
            stdin=pipe,
            stdout=pipe,
            text=True,
            start_new_session=True,
            # The history and the discovery file are one daemon's each: those of the host's, if anybody's.
            env={name: value for name, value in os.environ.items() if name not in ("RANKD_DATA", "RANKD_DISCOVERY")},
        )
        assert daemon.stdin is not None and daemon.stdout is not None
        with daemon.stdin, daemon.stdout, _ending_on_signals():
            try:
                if not daemon.stdout.readline().startswith("ready "):
                    leave(f"the daemon did not start (exit code {daemon.wait()})", PROBLEM)
                if listener is not None:
                    listener.start(url)
                yield url
            finally:
                stop(daemon)
                if listener is not None:
                    listener.close()


@contextlib.contextmanager
def _ending_on_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP (a closed terminal) end the block in order, rather than the process on the spot."""

    def end(signum: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + signum)

    former = {signum: signal.signal(signum, end) for signum in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for signum, handler in former.items():
            signal.signal(signum, handler)


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
    """Follows a daemon's alerts in a thread of its own and hands each to `show`, from `start` to `close`."""

    def __init__(self, run: str | None = None) -> None:
        self.alerts: list[Mapping[str, Any]] = []
        self._run = run
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def show(self, alert: Mapping[str, Any]) -> None:
        """Called in the listener's thread for each alert as it comes."""

    def start(self, url: str) -> None:
        self._thread = threading.Thread(target=asyncio.run, args=[self._follow_until_closed(url)], daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Call when the daemon has stopped: what it said last is still shown."""
        self._closing.set()
        if self._thread is not None:
            self._thread.join()

    async def _follow_until_closed(self, url: str) -> None:
        following = asyncio.create_task(self._follow(url))
        await asyncio.to_thread(self._closing.wait)
        await asyncio.sleep(LAST_WORDS_SECONDS)
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following

    async def _follow(self, url: str) -> None:
        from rankd_client import asubscribe

        async for alert in asubscribe(endpoint=url, run=self._run):
            self.alerts.append(alert)
            self.show(alert)
