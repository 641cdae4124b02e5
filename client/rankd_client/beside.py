"""What goes with a push beside the model, and before it: whoever hands it over wants it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rankd_client.turns import TOO_LARGE
from rankd_client.watch import Adapter, Selection, Watched, watch_also
from rankd_client.watch.also import fitting


class Beside:
    """Remembers what was there beside the model, so that what did not fit comes first: names alone. `found` is that of
    the push that is under way."""

    def __init__(self, selection: Selection, adapters: Sequence[Adapter], max_push_bytes: int) -> None:
        self._selection = selection
        self._adapters = adapters
        self._max_push_bytes = max_push_bytes
        self._last_pushes: dict[str, int] = {}
        self._num_pushes = 0
        self.found: list[Watched] = []

    def choose(self, also: Any, skipped: dict[str, str], max_bytes: int, alike: bool) -> list[Watched]:
        """What is to go of `also`, within `max_bytes`; the others get their reason in `skipped`. `alike`: a function of
        `also` alone, since other processes have parts of the same."""
        if also is None:
            self.found = []
            return []
        self.found, reasons = watch_also(also, self._selection, self._adapters)
        skipped |= reasons
        chosen = fitting(self.found, max_bytes, None if alike else self._last_pushes)
        went = {item.label for item in chosen}
        for item in self.found:
            if item.label not in went:
                num_bytes = item.turn_bytes if alike else item.num_bytes
                skipped[item.label] = TOO_LARGE if num_bytes > self._max_push_bytes else "budget"
        return chosen

    def pushed(self, copied: Iterable[Watched]) -> None:
        """The push ends: what went of it. Names that are not there any more are forgotten, and nothing that somebody
        handed over is kept alive."""
        self._num_pushes += 1
        found, self.found = self.found, []
        if not found:
            self._last_pushes.clear()
            return
        went = {item.label for item in copied}
        before = self._last_pushes
        self._last_pushes = {
            item.label: self._num_pushes if item.label in went else before.get(item.label, -1) for item in found
        }
