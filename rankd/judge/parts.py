"""Which parts a layer has rows for. The alerts of one that it has no longer would be on for ever: no row ends them."""

from __future__ import annotations

from rankd.records import Measurement


class Parts:
    """Of one layer, fed the rows of its whole. A bad one (non-finite, all zero) may come without rows of its parts, and
    only says what there is."""

    def __init__(self) -> None:
        self.present: dict[str, bool] = {}
        """Every part there ever was, and whether the layer has it still."""

    def lost(self, whole: Measurement) -> list[str]:
        """Those that there were before this row and that it has not."""
        if not whole.finite or whole.zero:
            return []
        names = _names(whole)
        return [name for name, present in self.present.items() if present and name not in names]

    def update(self, whole: Measurement) -> None:
        self.present |= dict.fromkeys(self.lost(whole), False) | dict.fromkeys(_names(whole), True)


def _names(whole: Measurement) -> list[str]:
    names = whole.extra.get("parts")
    return [name for name in names if isinstance(name, str)] if isinstance(names, list | tuple) else []
