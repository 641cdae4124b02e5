"""Living under whoever started us. What the service manager hears: systemd's notification protocol, one datagram a
message, no library needed.

Without NOTIFY_SOCKET in the environment nothing is sent.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import resource
import socket
import sys
from collections.abc import Callable, Mapping

log = logging.getLogger("rankd.supervise")

STALLED_SECONDS = 60.0
"""Something waits and nothing was measured for so long: not ready. The largest layers take seconds."""

MAX_OPEN_FILES = 65_536
"""More connections than the credits of all peers allow; a limit of a million would slow down closing them."""


def raise_open_files() -> int:
    """Allow this process as many open files as it may have by itself, up to MAX_OPEN_FILES; how many that is. The usual
    soft limit of 1,024 is there for programs that use select(), and is less than the connections of a large job."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    with contextlib.suppress(OSError, ValueError):  # a sandbox may forbid even that
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def stop_with_stdin(stop: asyncio.Event) -> None:
    """Set `stop` when standard input ends. Whoever started us holds the other end: when that process is gone, however
    it ended, so are we."""

    def read() -> None:
        if not os.read(stdin, 4096):
            loop.remove_reader(stdin)
            stop.set()

    loop, stdin = asyncio.get_running_loop(), sys.stdin.fileno()
    loop.add_reader(stdin, read)


class Notifier:
    """Sends to the socket that `environment` names; a service manager that is gone is no fault of ours."""

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = f"\0{name[1:]}" if name.startswith("@") else name
        self.watchdog_seconds = _watchdog_seconds(environment) if name else None
        """How often the manager wants a sign of life; None: it does not."""
        self._failed = False

    def ready(self, status: str = "") -> None:
        self._send("READY=1", f"STATUS={status}")

    def status(self, text: str) -> None:
        self._send(f"STATUS={text}")

    def stopping(self, status: str = "stopping") -> None:
        self._send("STOPPING=1", f"STATUS={status}")

    async def keep_alive(self, moving: Callable[[], bool]) -> None:
        """A sign of life at half of what the manager allows, while `moving()`; without one it starts us anew. Ends at
        once where none is wanted."""
        was_moving = True
        while self.watchdog_seconds is not None:
            if is_moving := moving():
                self._send("WATCHDOG=1")
            elif was_moving:
                log.error("the loops stand still; no more signs of life to the service manager")
            was_moving = is_moving
            await asyncio.sleep(self.watchdog_seconds / 2)

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        message = "\n".join(line.replace("\n", " ") for line in lines).encode()
        try:
            with socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            ) as sender:
                sender.connect(self._address)
                sender.send(message)
        except OSError as error:
            if not self._failed:
                log.warning("the service manager at NOTIFY_SOCKET=%r does not listen: %s", self._address, error)
            self._failed = True


def _watchdog_seconds(environment: Mapping[str, str]) -> float | None:
    """WATCHDOG_USEC, where it is meant for this process."""
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    with contextlib.suppress(ValueError):
        microseconds = int(environment.get("WATCHDOG_USEC", "0"))
        return microseconds / 1e6 if microseconds > 0 else None
    return None


class Stall:
    """For how long something has waited without anything being finished. Pure; `now` is monotonic, in seconds."""

    def __init__(self) -> None:
        self._num_done = -1
        self._since = 0.0

    def check(self, num_waiting: int, num_done: int, now: float) -> str | None:
        """`num_waiting` counts what waits or is being measured, `num_done` what was ever finished. Says what stands
        still, after STALLED_SECONDS of it."""
        if not num_waiting or num_done != self._num_done:
            self._num_done, self._since = num_done, now
        seconds = now - self._since
        if seconds < STALLED_SECONDS:
            return None
        return f"nothing was measured for {seconds:.0f} s although num_waiting={num_waiting}"
