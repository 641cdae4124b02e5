"""By which way snapshots leave the trainer's process: what a Pusher needs of it, and which one a mode has."""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from rankd_client.config import Config
from rankd_client.outbox import Outbox
from rankd_client.wire import DTYPES, LOCAL_VERSION, Hello, Plan


class Outlet(Protocol):
    """Takes from an outbox, on a thread of its own, whatever is whole. None of this waits but `join`."""

    tell: Callable[[], Mapping[str, Any]]
    """Called on that thread, for what a daemon is to hear of the pushes."""

    @property
    def connected(self) -> bool:
        """Whether a daemon answers at this moment."""
        ...

    @property
    def plan(self) -> Plan: ...

    @property
    def refused(self) -> dict[str, str]:
        """Layers that would not be taken, with the code; another thread may put another dict in its place."""
        ...

    @property
    def num_dropped(self) -> int:
        """Snapshots and reports that were refused, or could not be written."""
        ...

    @property
    def path(self) -> str:
        """By which way they go, as Stats has it."""
        ...

    def start(self) -> None: ...

    def wake(self) -> None:
        """The outbox has something."""
        ...

    def stop(self, timeout_seconds: float = ...) -> None:
        """Let go what is pending and end within `timeout_seconds`; returns at once."""
        ...

    def join(self, timeout_seconds: float) -> None:
        """Wait for the end of a stopped outlet."""
        ...


def make_outlet(
    config: Config,
    session: bytes,
    process_rank: int,
    world_size: int,
    outbox: Outbox,
    on_alert: Callable[[dict[str, Any]], None],
) -> Outlet:
    """A link to the daemon; in mode offline, a spool."""
    agent = f"rankd-client python/{platform.python_version()}"
    hello = Hello(config.run, session, DTYPES[config.dtype].version, agent, process_rank, world_size)
    if config.mode == "offline":
        from rankd_client.spool import Spool

        return Spool(Path(config.spool), config.spool_bytes, hello, outbox)
    from rankd_client.link import Link

    return Link(config.address, hello, outbox, on_alert, config.key, LOCAL_VERSION)
