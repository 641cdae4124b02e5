"""What pushing costs, and how fresh what the daemon has is: told to the user, and to the daemon with each heartbeat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from types import MappingProxyType
from typing import Any

from rankd_client.lasttimes import LastTimes

SMOOTHING = 0.2
"""Weight of the newest step, or push, in an average."""

Key = tuple[str, str]
"""(layer, role)"""


@dataclass(frozen=True, slots=True)
class Stats:
    """Of one client. Times in seconds; `share` is the part of the time since the first push that `push` blocked the
    training thread. What the sender's thread takes of a processor comes on top, and is not counted.

    A call is due where its step is the first at or after a multiple of `every_steps`, and `min_interval_seconds` have
    gone by since the last push; in a process that is alone, so is each call after one that was left out, until a push
    goes. `num_due` is `num_pushes` and `num_skipped` together: the latter were left out whole, for the budget or while
    a CUDA graph was captured, and say so in their receipts, as all others do that they are not due. Neither has calls
    in a process whose model others push.

    `ages_steps`: of each layer that is watched, how many steps old its newest snapshot is; None: there is none yet.
    `path`: how snapshots leave: "memfd" (memory that the daemon reads itself), "zeromq", "spool"; "" before the first.
    """

    step: int = 0
    num_pushes: int = 0
    num_due: int = 0
    num_skipped: int = 0
    blocked_seconds: float = 0.0
    elapsed_seconds: float = 0.0
    step_seconds: float = 0.0
    push_seconds: float = 0.0
    share: float = 0.0
    max_overhead: float | None = None
    every_steps: int = 1
    wire_bytes: int = 0
    device_bytes: int = 0
    memory_bytes: int = 0
    num_replaced: int = 0
    num_dropped: int = 0
    num_masters: int = 0
    path: str = ""
    ages_steps: Mapping[str, int | None] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def num_layers(self) -> int:
        return len(self.ages_steps)

    @property
    def num_never(self) -> int:
        return sum(age is None for age in self.ages_steps.values())

    @property
    def oldest_steps(self) -> int:
        """Of the layers that were pushed, the age of the stalest one."""
        return max((age for age in self.ages_steps.values() if age is not None), default=0)

    def summary(self) -> dict[str, Any]:
        """What a heartbeat tells: without the single layers."""
        told = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "ages_steps"}
        return told | {
            "num_layers": self.num_layers,
            "num_never": self.num_never,
            "oldest_steps": self.oldest_steps,
        }


class Meter:
    """Adds it up as pushes come. Times are given; several threads may read while one writes."""

    def __init__(self) -> None:
        self.step = 0
        self.num_pushes = self.num_due = self.num_skipped = 0
        self.blocked_seconds = self.push_seconds = self.step_seconds = 0.0
        self.wire_bytes = 0
        self._first_seconds: float | None = None
        self._last_seconds = self._pushed_seconds = 0.0
        self._at_step = 0
        self._names: tuple[str, ...] = ()
        self._pushed_at = LastTimes()

    def called(self, step: int, now_seconds: float) -> None:
        """push() was called; at each step, so no more than this. A step that goes back makes later snapshots void."""
        if step < self.step:
            self._pushed_at.keep([name for name, at in self._pushed_at.table().items() if at <= step])
        self.step, self._last_seconds = step, now_seconds

    def skipped(self) -> None:
        """A push that was due was left out."""
        self.num_due += 1
        self.num_skipped += 1

    def pushed(
        self, step: int, now_seconds: float, blocked_seconds: float, wire_bytes: int, names: Sequence[str]
    ) -> None:
        """`names` were copied. `blocked_seconds` without what is done once and for all."""
        num_steps = step - self._at_step
        if self._first_seconds is None:
            self._first_seconds = now_seconds
        elif num_steps > 0:
            between_seconds = now_seconds - self._pushed_seconds
            self.step_seconds = _smooth(self.step_seconds, between_seconds / num_steps)
        self._at_step, self._pushed_seconds = step, now_seconds
        self.num_due += 1
        self.num_pushes += 1
        self.blocked_seconds += blocked_seconds
        self.push_seconds = _smooth(self.push_seconds, blocked_seconds)
        self.wire_bytes += wire_bytes
        self._pushed_at.went(names, step)

    def watching(self, names: tuple[str, ...]) -> None:
        if names is not self._names:
            self._names = names
            self._pushed_at.keep(names)

    def stats(self, **more: Any) -> Stats:
        """`more`: what the pusher knows besides."""
        elapsed_seconds = 0.0 if self._first_seconds is None else self._last_seconds - self._first_seconds
        step, pushed_at = self.step, self._pushed_at.table()
        ages = {name: max(0, step - pushed_at[name]) if name in pushed_at else None for name in self._names}
        return Stats(
            step=step,
            num_pushes=self.num_pushes,
            num_due=self.num_due,
            num_skipped=self.num_skipped,
            blocked_seconds=self.blocked_seconds,
            elapsed_seconds=elapsed_seconds,
            step_seconds=self.step_seconds,
            push_seconds=self.push_seconds,
            share=self.blocked_seconds / elapsed_seconds if elapsed_seconds > 0 else 0.0,
            wire_bytes=self.wire_bytes,
            ages_steps=MappingProxyType(ages),
            **more,
        )


def _smooth(average: float, newest: float) -> float:
    return newest if average == 0.0 else average + SMOOTHING * (newest - average)
