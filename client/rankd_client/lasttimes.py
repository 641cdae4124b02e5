"""When each layer went last."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

_State = tuple[Mapping[str, int], Sequence[str], int]
"""A table that is not changed any more, and what went since: names, and when."""


class LastTimes:
    """A table that is brought up to date when it is asked, not when something goes: the same layers go again and again,
    while the training waits. One thread writes; others may ask, and whoever asks changes nothing."""

    def __init__(self) -> None:
        self._state: _State = {}, (), 0

    def went(self, names: Sequence[str], at: int) -> None:
        """`names` are not changed afterwards."""
        table, newest, _ = self._state
        self._state = (table if names is newest else self.table()), names, at

    def table(self) -> dict[str, int]:
        """By name."""
        table, names, at = self._state
        return {**table, **dict.fromkeys(names, at)}

    def keep(self, names: Iterable[str]) -> None:
        """Forget all others."""
        table = self.table()
        self._state = {name: table[name] for name in names if name in table}, (), 0
