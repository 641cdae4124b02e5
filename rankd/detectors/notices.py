"""Notices: a layer that is non-finite or all zero. An event at once, and no reading for any detector."""

from __future__ import annotations

from rankd.records import State, Verdict


class Notice:
    """Fires (critical) at the first bad measurement, and ends with the first good one that is not older.

    Bad measurements need no computing and may overtake good ones of earlier steps that are still being measured:
    a good one from before the firing step says nothing about it, unless the run went back.
    """

    def __init__(self, rule: str, seen: str) -> None:
        self.rule = rule
        self._seen = seen
        self._firing_step: int | None = None

    def bad(self, step: int) -> Verdict | None:
        """A bad measurement of `step`: a Verdict if it is the first."""
        if self._firing_step is not None:
            return None
        self._firing_step = step
        return self._verdict("firing", self._seen)

    def good(self, step: int, went_back: bool) -> Verdict | None:
        """A good measurement of `step`: a Verdict if it ends the notice."""
        if self._firing_step is None or (step < self._firing_step and not went_back):
            return None
        firing_step, self._firing_step = self._firing_step, None
        return self._verdict("resolved", f"no longer so ({self._seen} at step {firing_step})")

    def _verdict(self, state: State, detail: str) -> Verdict:
        return Verdict(self.rule, state, "critical", None, None, None, detail)


def make_notices() -> dict[str, Notice]:
    return {
        "nonfinite": Notice("nonfinite", "the weights hold NaN or infinite values"),
        "zero": Notice("zero", "the weights are all zero"),
    }
