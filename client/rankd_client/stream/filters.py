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
    """Remembers the states of alerts that were shown, and on which stream; the oldest are forgotten."""

    def __init__(self) -> None:
        self._streams: OrderedDict[int, str] = OrderedDict()

    def add(self, alert: Mapping[str, Any], stream_id: str) -> str | None:
        """The stream on which this state of the alert was shown before, None if never. One that has ended counts as
        shown firing: an older list of those firing must not bring it back. Without an id every alert is new."""
        alert_id, state = alert.get("alert_id"), alert.get("state")
        if not isinstance(alert_id, str) or not isinstance(state, str):
            return None
        token = hash((alert_id, state))  # of a fixed size, however long the id
        before = self._streams.get(token)
        for shown in (hash((alert_id, "firing")), token):
            self._streams[shown] = stream_id
            self._streams.move_to_end(shown)
        while len(self._streams) > MAX_SHOWN:
            self._streams.popitem(last=False)
        return before
