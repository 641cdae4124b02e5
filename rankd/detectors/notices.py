"""Notices: a layer that is non-finite or all zero. An event at once, and no reading for any detector."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankd.records import Severity, State, Verdict

_SUBJECTS = {
    "weight": ("the weights hold", "the weights are"),
    "feature": ("the features hold", "the features are"),
    "gradient": ("the gradient holds", "the gradient is"),
    "update": ("the update holds", "the update is"),
}


def seen(rule: str, role: str = "weight") -> str:
    """What a notice has seen where all of the layer is bad."""
    hold, are = _SUBJECTS.get(role, _SUBJECTS["weight"])
    return f"{hold} NaN or infinite values" if rule == "nonfinite" else f"{are} all zero"


SEEN = {rule: seen(rule) for rule in ("nonfinite", "zero")}
"""The notices by their rules, and what each has seen of weights."""

MAX_OVERTAKEN = 2
"""Good measurements of a layer that a bad one can overtake: one being measured, one waiting (newest wins)."""


class Notice:
    """Fires at the first bad measurement, and ends with the first good one that is not older than the last.

    Bad measurements need no computing and overtake good ones of earlier steps that are still being measured: those say
    nothing about the newest weights. More of them than can have been overtaken come from a run that went back.
    """

    def __init__(self, rule: str, severity: Severity = "critical", role: str = "weight") -> None:
        self.rule = rule
        self._severity = severity
        self._whole = seen(rule, role)
        self._seen = self._whole
        self._firing_step: int | None = None
        self._newest_step = 0
        self._num_older = 0

    def bad(self, step: int) -> Verdict | None:
        """A bad measurement of `step`: a Verdict if it is the first."""
        self._newest_step, self._num_older = step, 0
        return self._fire(step, self._whole)

    def partly(self, step: int, seen: str, went_back: bool) -> Verdict | None:
        """A measurement of `step` in which a part of the weights is bad: `seen`. It was computed and overtakes nothing,
        but a bad one may have overtaken it. A Verdict if it is the first."""
        if self._firing_step is None or step >= self._newest_step or went_back:
            self._newest_step, self._num_older = step, 0
        return self._fire(step, seen)

    def _fire(self, step: int, seen: str) -> Verdict | None:
        if self._firing_step is not None:
            return None
        self._firing_step, self._seen = step, seen
        return self._verdict("firing", seen)

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
        return Verdict(self.rule, state, self._severity, None, None, None, detail)

    def state(self) -> dict[str, Any]:
        seen = {} if self._seen == self._whole else {"seen": self._seen}
        steps = {"firing_step": self._firing_step, "newest_step": self._newest_step, "num_older": self._num_older}
        return {**steps, **seen}

    def restore(self, state: Mapping[str, Any]) -> None:
        self._firing_step = state["firing_step"]
        self._newest_step = state["newest_step"]
        self._num_older = state["num_older"]
        self._seen = state.get("seen", self._whole)
