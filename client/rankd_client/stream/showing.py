"""What of the events heard is given out, each state of an alert once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankd_client.shown import Shown
from rankd_client.stream.filters import Wanted
from rankd_client.stream.items import Item, Mark
from rankd_client.stream.severity import SeverityFilter
from rankd_client.wire import Event


class Showing:
    """Collects items: events whose turn it is, and alerts that fire already."""

    def __init__(self, wanted: Wanted) -> None:
        self.lost_streams: list[str] = []
        """Current meanwhile, and not part of the history that came back."""
        self.severe = SeverityFilter(wanted.severity)
        self._wanted = wanted
        self._shown = Shown()
        self._items: list[Item] = []

    def event(self, event: Event) -> None:
        # Shown even if an earlier stream had one of this id: a job that is run again and fails alike is a new alarm.
        # But what a lost stream told comes again when the daemon measures again what it had not written.
        if event.kind == "alert":
            self._shown.add(event.body)
            if any(self._shown.forget_repeat(event.body, stream_id) for stream_id in self.lost_streams):
                return
        self._show(event.body, Mark(event.stream_id, event.kind, event.run, event.seq))

    def firing(self, alert: Mapping[str, Any], mark: Mark, told: bool) -> None:
        """`told`: an earlier life of the subscriber was given it."""
        if self._shown.add(alert) and not told:
            self._show(alert, mark)

    def _show(self, body: Mapping[str, Any], mark: Mark) -> None:
        if self._wanted.layer(body) and (mark.kind != "alert" or self.severe(body)):
            self._items.append(Item(body, mark.kind, mark))

    def take(self) -> tuple[Item, ...]:
        items, self._items = tuple(self._items), []
        return items
