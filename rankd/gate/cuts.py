"""Who was cut off and why: counted, and told ever more rarely."""

from __future__ import annotations

import logging
from collections import Counter

from rankd.gate.connection import Listener

log = logging.getLogger("rankd.gate")

REASONS = (
    "bad_command", "bad_frame", "bad_greeting", "bad_handshake", "bad_subscription", "fault", "other_user", "slow",
    "stuck", "too_long", "too_many_connections", "too_many_frames", "too_many_subscriptions", "wrong_mechanism",
)  # fmt: skip
"""Each is counted as `num_cut_REASON`; those given to `expect` come on top."""


class Cuts:
    """`expect` may be called from any thread, `count` from the gate's alone."""

    def __init__(self, counters: Counter[str]) -> None:
        self._counters = counters
        for reason in REASONS:
            self.expect(reason)

    def expect(self, reason: str) -> None:
        """Now: a key that appears later would disturb whoever walks over them."""
        self._counters.setdefault(f"num_cut_{reason}", 0)

    def count(self, listener: Listener, name: str, reason: str, detail: str) -> None:
        key = f"num_cut_{reason}"
        self._counters[key] += 1
        if str(self._counters[key]).strip("0") == "1":  # the first, then ever rarer: no peer can fill a disk
            log.warning("cut off %s at %s: %s times=%d %s", name, listener.name, reason, self._counters[key], detail)
