"""When each layer went last."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


class LastTimes:
    """A table that is brought up to date when it is asked, not when something goes: the same layers go again and again,
    while the training waits. One thread writes; others may ask."""

    def __init__(self) -> None:
        self._table: dict[str, int] = {}
        self._newest: tuple[Sequence[str], int] = ((), 0)
        """Names, and when they went."""

    def went(self, names: Sequence[str], at: int) -> None:
        """`names` are not changed afterwards."""
        if names is not self._newest[0]:
            self.table()
        self._newest = names, at

    def table(self) -> dict[str, int]:
        """By name; to be read alone."""
        names, at = self._newest
        self._table.update(dict.fromkeys(names, at))
        return self._table

    def keep(self, names: Iterable[str]) -> None:
        """Forget all others."""
        table = self.table()
        self._newest, self._table = ((), 0), {name: table[name] for name in names if name in table}
