"""Says who else can push and listen, where that is more than the owner or the holders of keys."""

from __future__ import annotations

import logging

log = logging.getLogger("rankd.openness")

INSECURE = "insecure: whoever reaches these addresses can push and listen"
INSECURE_SECONDS = 3600.0
"""How often that is said."""


class Openness:
    """insecure: with `--insecure`. open_to_users: loopback TCP without keys. `now` is monotonic, in seconds."""

    def __init__(self, insecure: bool, open_to_users: bool, now: float) -> None:
        self._insecure = insecure
        self._said_at = now
        if insecure:
            log.warning(INSECURE)
        elif open_to_users:
            log.warning("listening on loopback TCP without keys: every user of this host can push and listen")

    def look(self, now: float) -> None:
        """To be called now and then."""
        if self._insecure and now - self._said_at >= INSECURE_SECONDS:
            self._said_at = now
            log.warning(INSECURE)
