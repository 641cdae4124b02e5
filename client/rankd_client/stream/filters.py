"""What of the stream a subscriber wants, and what it was shown already."""

from __future__ import annotations

import fnmatch
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankd_client.wire import MAX_LAYER_NAME_BYTES

MAX_SHOWN = 10_000
"""Alerts remembered as shown already: far more than are firing at once. About 1 MB."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """run: the only run wanted, or None for all; layers: globs, or None for all; kinds: "alert", "measurement"."""

    run: str | None = None
    layers: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = ("alert",)

    def topic(self, kind: str, run: str) -> bool:
        return kind in self.kinds and self.run in (None, run)

    def layer(self, body: Mapping[str, Any]) -> bool:
        """An alert of a whole run (layer null) concerns every layer, unless it lists those that it is about."""
        layer, listed = body.get("layer"), body.get("layers")
        if self.layers is None or (layer is None and not listed):
            return True
        names = listed if layer is None and isinstance(listed, list) else [layer]
        return any(self._matches(name) for name in names)

    def _matches(self, name: object) -> bool:
        # longer than any layer's name: not worth the time that a glob takes on it
        if self.layers is None or not isinstance(name, str) or len(name) > MAX_LAYER_NAME_BYTES:
            return False
        return any(fnmatch.fnmatchcase(name, glob) for glob in self.layers)


class Shown:
    """Remembers the states of alerts that were shown; the oldest are forgotten."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[int, None] = OrderedDict()

    def add(self, alert: Mapping[str, Any]) -> bool:
        """Whether this state of the alert is new. One that has ended counts as shown firing: an older list of those
        firing must not bring it back. Without an id every alert is new."""
        alert_id, state = alert.get("alert_id"), alert.get("state")
        if not isinstance(alert_id, str) or not isinstance(state, str):
            return True
        token = hash((alert_id, state))  # of a fixed size, however long the id
        new = token not in self._tokens
        for shown in (hash((alert_id, "firing")), token):
            self._tokens[shown] = None
            self._tokens.move_to_end(shown)
        while len(self._tokens) > MAX_SHOWN:
            self._tokens.popitem(last=False)
        return new
