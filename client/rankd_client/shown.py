"""Which alerts somebody was told of already: they come again with a new connection, and in answers about the state."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

MAX_SHOWN = 10_000
"""Alerts remembered as shown already: far more than are firing at once. About 1 MB."""


class Shown:
    """Remembers the states of alerts that were shown; the oldest are forgotten."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[int, None] = OrderedDict()

    def add(self, alert: Mapping[str, Any]) -> bool:
        """Whether this state of the alert is new. One that has ended counts as shown firing: an older list of those
        firing must not bring it back. Without an id every alert is new, and so is one of another stream: a job that is
        run again and fails alike is a new alarm."""
        alert_id, state, stream_id = alert.get("alert_id"), alert.get("state"), alert.get("stream_id")
        if not isinstance(alert_id, str) or not isinstance(state, str):
            return True
        stream = stream_id if isinstance(stream_id, str) else ""
        token = hash((stream, alert_id, state))  # of a fixed size, however long the id
        new = token not in self._tokens
        for shown in (hash((stream, alert_id, "firing")), token):
            self._tokens[shown] = None
            self._tokens.move_to_end(shown)
        while len(self._tokens) > MAX_SHOWN:
            self._tokens.popitem(last=False)
        return new
