"""How others learn that the daemon is there: the ready line, a discovery file, the service manager."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from rankd.config import ServeConfig
from rankd.discovery import DiscoveryFile
from rankd.supervise import Notifier


@dataclass(frozen=True, slots=True)
class Ready:
    """What the daemon bound, once it takes pushes."""

    push: str
    alerts: str
    query: str
    http: str

    def __str__(self) -> str:
        return f"ready push={self.push} alerts={self.alerts} query={self.query} http={self.http}"


class Presence:
    """Raises ConfigError where the discovery file cannot be."""

    def __init__(self, config: ServeConfig) -> None:
        self.announced = False
        self.notifier = Notifier()
        self._file = None if config.discovery is None else DiscoveryFile(config.discovery, config.advertise)

    def begin(self, ready: Ready, announce: Callable[[Ready], None], public_key: str | None) -> None:
        """Pushes are taken from now on."""
        if self._file is not None:
            self._file.write(asdict(ready), time.time(), public_key)
        announce(ready)
        self.notifier.ready(f"pushes at {ready.push}")
        self.announced = True

    def end(self) -> None:
        """No more are taken. Any number of times."""
        if self.announced:
            self.announced = False
            self.notifier.stopping()
        if self._file is not None:
            self._file.remove()
