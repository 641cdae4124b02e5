"""Which alerts somebody was told of already: they come again with a new connection, and in answers about the state."""

from __future__ import annotations

import time
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
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
        tokens = _tokens(alert, alert.get("stream_id"))
        if tokens is None:
            return True
        firing, token = tokens
        new = token not in self._tokens
        for shown in (firing, token):
            self._tokens[shown] = None
            self._tokens.move_to_end(shown)
        while len(self._tokens) > MAX_SHOWN:
            self._tokens.popitem(last=False)
        return new

    def forget_repeat(self, alert: Mapping[str, Any], stream_id: str) -> bool:
        """Whether this state of the alert was shown in the stream `stream_id`; it is forgotten if it was."""
        tokens = _tokens(alert, stream_id)
        return tokens is not None and self._tokens.pop(tokens[1], True) is None


def take_once(
    alerts: deque[dict[str, Any]], echo: Callable[[dict[str, Any], float], None] | None
) -> Callable[[dict[str, Any]], None]:
    """Puts what a connection brings into `alerts`, and has it echoed, once: what fires still comes again with each."""
    shown = Shown()

    def take(alert: dict[str, Any]) -> None:
        if shown.add(alert):
            alerts.append(alert)
            if echo is not None:
                echo(alert, time.monotonic())

    return take


def take_all(alerts: deque[dict[str, Any]]) -> list[dict[str, Any]]:
    """What is in `alerts`, and not any more then; another thread may take some, too."""
    taken = []
    while alerts:
        try:
            taken.append(alerts.popleft())
        except IndexError:  # it took the last one
            break
    return taken


def _tokens(alert: Mapping[str, Any], stream_id: object) -> tuple[int, int] | None:
    """Of the alert firing, and of its state: of a fixed size, however long the id."""
    alert_id, state = alert.get("alert_id"), alert.get("state")
    if not isinstance(alert_id, str) or not isinstance(state, str):
        return None
    stream = stream_id if isinstance(stream_id, str) else ""
    return hash((stream, alert_id, "firing")), hash((stream, alert_id, state))
