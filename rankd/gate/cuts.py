"""Who was cut off and why: counted, and each peer named in the log once."""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Callable

from rankd.gate.bucket import Bucket
from rankd.gate.connection import Listener

log = logging.getLogger("rankd.gate")

REASONS = (
    "bad_command", "bad_frame", "bad_greeting", "bad_handshake", "bad_subscription", "fault", "other_user", "slow",
    "stuck", "too_long", "too_many_connections", "too_many_frames", "too_many_subscriptions", "wrong_mechanism",
)  # fmt: skip
"""Each is counted as `num_cut_REASON`; those given to `expect` come on top."""

MAX_NAMED = 1000
"""Peers, each with a reason, that are remembered as named."""

LINES_PER_SECOND, LINES_AT_ONCE = 1 / 6, 100.0
"""Of names: whoever has many addresses must not fill a disk."""


class Cuts:
    """`expect` may be called from any thread, `count` from the gate's alone. `clock` is monotonic, in seconds."""

    def __init__(self, counters: Counter[str], clock: Callable[[], float]) -> None:
        self._counters = counters
        self._clock = clock
        self._named: OrderedDict[tuple[str, ...], None] = OrderedDict()
        self._lines = Bucket(LINES_PER_SECOND, LINES_AT_ONCE)
        for reason in REASONS:
            self.expect(reason)

    def expect(self, reason: str) -> None:
        """Now: a key that appears later would disturb whoever walks over them."""
        self._counters.setdefault(f"num_cut_{reason}", 0)

    def count(self, listener: Listener, peer: str, name: str, reason: str, detail: str) -> None:
        """`peer` is who it was (address or user), `name` which of its connections."""
        key = f"num_cut_{reason}"
        self._counters[key] += 1
        ever_rarer = str(self._counters[key]).strip("0") == "1"
        if self._is_new(listener.name, peer, reason) or ever_rarer:
            log.warning("cut off %s at %s: %s times=%d %s", name, listener.name, reason, self._counters[key], detail)

    def _is_new(self, *who: str) -> bool:
        if who in self._named:
            return False
        if not self._lines.take(self._clock()):
            return False
        self._named[who] = None
        if len(self._named) > MAX_NAMED:
            self._named.popitem(last=False)
        return True
