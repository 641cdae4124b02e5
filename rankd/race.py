"""The processes of a job are at different steps: which unfinished layers can still become whole. Pure.

A client sends a layer's steps in ascending order, and of those it has not sent yet only the newest. So once one of the
clients that make a layer has begun a later step, an earlier one that lacks its part will never be whole; unless the job
went back to a checkpoint, which is new data.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Literal

from rankd.records import LayerStep
from rankd.shards import OpenLayer

LayerKey = tuple[str, str, str]
"""(run, layer, role)"""

Why = Literal["timed_out", "overtaken", "process_gone", "assembly_full"]

MAX_MAKERS = 1 << 20
"""Sessions in all sets of makers, of which the layers of a job share one. Beyond it all are forgotten: then layers are
given up later."""

MAX_GIVEN_UP = 4096
"""Layers and steps remembered, because more of them may be on its way."""


@dataclass(frozen=True, slots=True)
class Lost:
    """A layer at a step that will not be whole, and the sessions that sent a part of it. `by_step`: the later step that
    some of its clients have gone on to."""

    key: LayerStep
    sessions: frozenset[bytes]
    why: Why
    by_step: int | None = None
    is_shard: bool = False
    """The layer was told of before; this is a part of it that came later."""


@dataclass(slots=True)
class Start:
    """What a shard that begins means for the steps of its layer. `is_back`: its client went back to a checkpoint, or
    began anew from one. `by_step`: the later step that makes it useless. `overtaken`: earlier ones that it makes so."""

    is_back: bool = False
    by_step: int | None = None
    why: Why = "overtaken"
    overtaken: list[int] = field(default_factory=list)


class Race:
    def __init__(self) -> None:
        self._makers: dict[LayerKey, frozenset[bytes]] = {}
        """Whose parts the last whole snapshot of a layer was made of."""
        self._sets: dict[frozenset[bytes], frozenset[bytes]] = {}
        self._num_makers = 0
        self._given_up: OrderedDict[LayerStep, tuple[Why, float]] = OrderedDict()

    def start(self, key: LayerStep, session: bytes, steps: Mapping[int, OpenLayer], newest: int | None) -> Start:
        """`session` begins its part of `key`. `steps`: what is unfinished of the layer; `newest`: the step that was
        whole last."""
        step = key[3]
        if (newest is not None and newest > step) or any(
            t > step and session in layer.shards for t, layer in steps.items()
        ):
            return Start(is_back=True)
        here = steps.get(step)
        if here is None or not here.is_back:
            sent = here.shards.keys() if here is not None else frozenset()
            for t, layer in steps.items():
                if t > step and layer.is_shared and not layer.is_back and not layer.shards.keys() <= sent | {session}:
                    return Start(by_step=t)
        return Start(overtaken=[t for t, layer in steps.items() if t < step and _lacks(layer, session)])

    def whole(self, key: LayerStep, sessions: Collection[bytes], steps: Mapping[int, OpenLayer]) -> list[int]:
        """`key` was made of parts of `sessions`. Returns the earlier steps that they will not come to any more."""
        if len(sessions) == 1:
            self._makers.pop(key[:3], None)
            return []
        makers = frozenset(sessions)
        if makers not in self._sets:
            if self._num_makers + len(makers) > MAX_MAKERS:
                self._makers.clear()
                self._sets.clear()
                self._num_makers = 0
            self._sets[makers] = makers
            self._num_makers += len(makers)
        self._makers[key[:3]] = self._sets[makers]
        return [t for t, layer in steps.items() if t < key[3] and layer.is_shared and not layer.is_back]

    def waits_for_any(self, key: LayerStep, layer: OpenLayer, gone: frozenset[bytes]) -> bool:
        """Whether `layer` lacks the part of one that is gone."""
        makers = self._makers.get(key[:3])
        if makers is None or not layer.is_shared or not layer.shards.keys() <= makers:
            return False  # another cut, maybe
        return not gone.isdisjoint(makers - layer.shards.keys())

    def given_up(self, key: LayerStep, why: Why, now: float) -> None:
        self._given_up[key] = why, now
        self._given_up.move_to_end(key)
        if len(self._given_up) > MAX_GIVEN_UP:
            self._given_up.popitem(last=False)

    def gave_up(self, key: LayerStep, since: float) -> Why | None:
        """Why `key` was given up, if it was since then."""
        why, at = self._given_up.get(key, (None, 0.0))
        return why if at >= since else None

    def forget(self, run: str) -> None:
        for layer in [layer for layer in self._makers if layer[0] == run]:
            del self._makers[layer]
        for key in [key for key in self._given_up if key[0] == run]:
            del self._given_up[key]


def _lacks(layer: OpenLayer, session: bytes) -> bool:
    """Whether others have sent their parts of it, and `session` has not."""
    return layer.is_shared and not layer.is_back and session not in layer.shards
