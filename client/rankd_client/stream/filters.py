"""What of the stream a subscriber wants."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rankd_client.wire import MAX_LAYER_NAME_BYTES


@dataclass(frozen=True, slots=True)
class Wanted:
    """run: the only run wanted, or None for all; layers: globs, or None for all; kinds: "alert", "measurement";
    severity: the least that an alert must have, or None for all."""

    run: str | None = None
    layers: tuple[str, ...] | None = None
    kinds: tuple[str, ...] = ("alert",)
    severity: str | None = None

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
