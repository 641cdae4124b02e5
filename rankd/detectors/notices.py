"""Notices: a layer that is non-finite or all zero. An event at once, and no reading for any detector."""

from __future__ import annotations

from rankd.records import State, Verdict

MAX_OVERTAKEN = 2
"""Good measurements of a layer that a bad one can overtake: one being measured, one waiting (newest wins)."""


class Notice:
    """Fires (critical) at the first bad measurement, and ends with the first good one that is not older than the last.

    Bad measurements need no computing and overtake good ones of earlier steps that are still being measured: those say
    nothing about the newest weights. More of them than can have been overtaken come from a run that went back.
    """

    def __init__(self, rule: str, seen: str) -> None:
        self.rule = rule
        self._seen = seen
        self._firing_step: int | None = None
        self._newest_step = 0
        self._num_older = 0

    def bad(self, step: int) -> Verdict | None:
        """A bad measurement of `step`: a Verdict if it is the first."""
        self._newest_step, self._num_older = step, 0
        if self._firing_step is not None:
            return None
        self._firing_step = step
        return self._verdict("firing", self._seen)

    def good(self, step: int, went_back: bool) -> Verdict | None:
        """A good measurement of `step`: a Verdict if it ends the notice."""
        if self._firing_step is None:
            return None
        if step < self._newest_step and not went_back and self._num_older < MAX_OVERTAKEN:
            self._num_older += 1
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
