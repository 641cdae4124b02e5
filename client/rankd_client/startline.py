"""The line at the start that says what is watched and what that costs."""

from __future__ import annotations

from rankd_client.config import Config
from rankd_client.console import say, show_bytes
from rankd_client.plan import process_world
from rankd_client.text import escape
from rankd_client.turns import not_mine
from rankd_client.watch import Watched

MAX_NAMES = 5
"""Layers named in a line; the receipts name them all."""


class StartLine:
    """`28 of 41 tensors watched, 112 MB a push, estimated cost 0.3 %`, once, on stderr.

    The cost is what the first push blocked (memory that is allocated once left out), over the time between it and the
    call of the next step, scaled to the interval between pushes. So the line comes with that call; or at the end, with
    no estimate, where there was none. A process of a job that has nothing to send leaves it to those that do.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._watched: list[str] | None = None
        self._num_tensors = 0
        self._num_masters = 0
        self._never: list[str] = []
        self._left: list[str] = []
        self._first: tuple[int, float, float, int] | None = None
        self._said = False
        self._is_others = False

    def watching(self, watched: list[Watched], skipped: dict[str, str]) -> None:
        """What the first push found."""
        if self._said or self._watched is not None:
            return
        process_rank, _ = process_world()
        self._is_others = process_rank > 0 and all(not_mine(item, process_rank) is not None for item in watched)
        if self._is_others:
            return
        self._watched = [item.label for item in watched]
        self._num_masters = sum(item.is_master for item in watched)
        self._left = [f"{escape(item.label, 100)} ({escape(item.note, 200)})" for item in watched if item.note]
        self._num_tensors = len(watched) + len(skipped)
        limit = self._config.max_push_bytes
        self._never = [
            f"{escape(item.label, 100)} ({show_bytes(item.num_bytes)} is more than max_push_bytes)"
            for item in watched
            if item.num_bytes > limit
        ]
        self._never += [
            f"{escape(name, 100)} ({escape(reason, 200)})"
            for name, reason in skipped.items()
            if "are both called" in reason
        ]

    def pushed(self, step: int, now_seconds: float, blocked_seconds: float, wire_bytes: int) -> None:
        if self._first is None and not self._is_others:
            self._first = (step, now_seconds, blocked_seconds, wire_bytes)

    def called(self, step: int, now_seconds: float) -> None:
        """push() was called, due or not. Of a call at the same step nothing is learnt; and where steps count tokens, so
        that a call is many of them, pushes are as far apart as calls are, at least."""
        if self._said or self._first is None or step == self._first[0]:
            return
        first_step, first_seconds, blocked_seconds, _ = self._first
        num_steps = max(1, step - first_step)
        num_calls = max(1.0, self._config.every_steps / num_steps)
        every_seconds = max((now_seconds - first_seconds) * num_calls, 1e-9)
        share = blocked_seconds / max(every_seconds, self._config.min_interval_seconds)
        limit = self._config.max_overhead
        if limit is not None and share > limit:
            self._say(f", estimated cost {100 * share:.2g} % if each due push were whole, {self._bound(limit)}")
        else:
            self._say(f", estimated cost {100 * share:.2g} %")

    def closed(self) -> None:
        if not self._said and self._first is not None:
            self._say(f", {1000 * self._first[2]:.2g} ms for the only one")

    def _bound(self, limit: float) -> str:
        """Who sees to it that pushing costs no more than it may. One of several processes may not by itself."""
        if process_world()[1] == 1:
            return f"kept to {100 * limit:.2g} %"
        if self._config.spool:
            return (
                f"more than {100 * limit:.2g} %, as no daemon spaces the pushes of several processes: raise every_steps"
            )
        return f"spaced by the daemon's plan for {100 * limit:.2g} %"

    def _say(self, cost: str) -> None:
        self._said = True
        num_watched = len(self._watched or ())
        wire_bytes = self._first[3] if self._first else 0
        masters = f" ({self._num_masters} of them float32 masters)" if self._config.source == "master" else ""
        say(f"{num_watched} of {self._num_tensors} tensors watched{masters}, {show_bytes(wire_bytes)} a push{cost}")
        for what, names in (("never pushed", self._never), ("pushed themselves", self._left)):
            if names:
                more = len(names) - MAX_NAMES
                say(f"{what}: " + ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else ""))
