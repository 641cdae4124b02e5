"""Which steps are due, and which layers go at one. Pure: in jobs of several processes all must choose alike."""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from rankd_client.wire import Plan


def process_world() -> tuple[int, int]:
    """(process_rank, world_size): torch.distributed's where it is initialised, else the launcher's environment."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    try:
        process_rank, world_size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    except ValueError:
        return 0, 1  # somebody else's variables
    return (process_rank, world_size) if 0 <= process_rank < world_size else (0, 1)


@dataclass(slots=True)
class Schedule:
    """When to push: the client's own interval, or the daemon's plan where that is longer."""

    every_steps: int = 1
    min_interval_seconds: float = 0.0
    plans: tuple[Plan, ...] = field(default=(Plan(),))
    """The plan before the newest, and the newest: a plan says nothing about the steps before its first."""
    _step: int | None = field(default=None, init=False)
    _step_before: int | None = field(default=None, init=False)
    """The newest step with which a push was called, due or not, and the last other one."""

    def called(self, step: int) -> None:
        """A push was called with `step`: before it is asked whether that is due."""
        if step != self._step:
            self._step_before, self._step = self._step, step

    def adopt(self, plan: Plan) -> None:
        if plan != self.plans[-1]:
            self.plans = (self.plans[-1], plan)

    def interval_at(self, step: int) -> int:
        """Steps from one due push to the next, at `step`."""
        for plan in reversed(self.plans):
            if step >= plan.first_step:
                return max(self.every_steps, plan.every_steps)
        return self.every_steps

    def due(self, step: int, last_step: int | None, world_size: int) -> bool:
        """Whether `step` is due, `last_step` being the last one pushed (None: none yet).

        It is if it is the first at or after a multiple of the interval. One process: the first since the last push,
        and without one, or if the step went back, it is due. Several processes: the first that a push was called with,
        which is the same in all of them, whatever became of the pushes; a process that was not called before, or whose
        step went back, has multiples alone due.
        """
        every = self.interval_at(step)
        since = last_step if world_size == 1 else self._step_before
        if since is None or step < since:
            return world_size == 1 or step % every == 0
        return step // every > since // every

    def too_soon(self, seconds_since_last: float | None, world_size: int) -> bool:
        """Whether min_interval_seconds forbids a push; time is no common ground for several processes."""
        if world_size > 1 or seconds_since_last is None:
            return False
        return seconds_since_last < self.min_interval_seconds


class Layer(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def turn_bytes(self) -> int: ...
    @property
    def group(self) -> str: ...
    @property
    def priority(self) -> bool: ...


def choose(layers: Sequence[Layer], max_bytes: int, last_steps: Mapping[str, int]) -> list[str]:
    """Names of the layers to push now, within `max_bytes`: those of priority, then the others, the stalest first.

    `last_steps` holds the step at which each was last pushed. What does not fit this time is the stalest next time.
    """
    order = sorted(layers, key=lambda layer: (not layer.priority, last_steps.get(layer.name, -1)))
    return _fill(order, max_bytes)


def choose_alike(layers: Sequence[Layer], max_bytes: int, turn: int) -> list[str]:
    """The same for jobs of several processes: a function of the layers' names and sizes and the number of the turn.

    A layer counts as `turn_bytes`, the same in all processes, whatever their own part of it is. Where all fit into one
    push, all go. Else the groups draw lots for the turn, because a group is known to the same processes, and what else
    one of them knows (such as its own experts) is no common ground: a group's lot, its part that goes and how it is cut
    into parts depend on it and the turn alone. So whoever knows fewer groups, or takes all at every turn, takes what
    the others do, too.
    """
    fitting = [layer for layer in layers if layer.turn_bytes <= max_bytes]
    if sum(layer.turn_bytes for layer in fitting) <= max_bytes:
        return [layer.name for layer in fitting]
    own = max({layer.group for layer in fitting}, key=lambda group: (_lot(group, turn), group))
    return _turn_of([layer for layer in fitting if layer.group == own], max_bytes, turn, own)


def _turn_of(layers: Sequence[Layer], max_bytes: int, turn: int, group: str) -> list[str]:
    """Those of priority, and one part of the others, which are cut in their order into what fits beside those.

    Parts go in their order, from a part on that is drawn anew after each round: the turns that there are may be every
    fifth or tenth one, and in order alone most parts would never have one of those.
    """
    first = []
    for layer in layers:
        if layer.priority and layer.turn_bytes <= max_bytes:
            first.append(layer.name)
            max_bytes -= layer.turn_bytes
    parts: list[list[str]] = [[]]
    part_bytes = 0
    for layer in layers:
        if layer.name in first or layer.turn_bytes > max_bytes:
            continue
        if part_bytes + layer.turn_bytes > max_bytes:
            parts.append([])
            part_bytes = 0
        parts[-1].append(layer.name)
        part_bytes += layer.turn_bytes
    begin = _lot(f"part {group}", turn // len(parts))
    return first + parts[(turn + begin) % len(parts)]


def _lot(name: str, number: int) -> int:
    """64 bits that look random, and are the same in all processes: splitmix64 of what the name and the number make."""
    bits = (zlib.crc32(name.encode(errors="backslashreplace")) << 32) + (number + 1) * 0x9E3779B97F4A7C15
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits &= (1 << 64) - 1
        bits = (bits ^ (bits >> shift)) * factor
    bits &= (1 << 64) - 1
    return bits ^ (bits >> 31)


def _fill(layers: Sequence[Layer], max_bytes: int) -> list[str]:
    names = []
    for layer in layers:
        if layer.num_bytes <= max_bytes:
            names.append(layer.name)
            max_bytes -= layer.num_bytes
    return names
