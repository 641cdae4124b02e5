"""The processes of each run: those that are here, and those that went without a word. Pure."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from rankd.trainers.stats import NO_STATS, Stats

MAX_GONE = 8192
"""Remembered of all runs, those that went last: about 0.4 kB each."""

MAX_RUNS_TOLD, MAX_PROCESSES_TOLD = 128, 2048
"""In one answer: 1 kB a run, 0.6 kB a process."""


@dataclass(slots=True)
class Trainer:
    """One process, by the session of its client. Times are monotonic seconds."""

    session: bytes
    run: str
    process_rank: int
    world_size: int
    since: float
    step: int | None = None
    """Of the chunk that was taken last."""
    told_at: float = 0.0
    stats: Stats = NO_STATS
    gone_at: float | None = None
    why: str = ""

    @property
    def newest_step(self) -> int | None:
        """That it is known to have pushed: what it tells may be a while on its way behind its chunks."""
        return max((step for step in (self.step, self.stats.step) if step is not None), default=None)

    def to_json(self) -> dict[str, Any]:
        name = {"run": self.run, "process_rank": self.process_rank, "world_size": self.world_size}
        return {**name, "step": self.newest_step, "gone": self.gone_at is not None, **self.stats.to_json()}


class Trainers:
    """Those here are as many as there are greeted connections; MAX_GONE bounds the others."""

    def __init__(self) -> None:
        self._here: dict[bytes, Trainer] = {}
        self._runs: dict[str, dict[bytes, Trainer]] = {}
        """Those here."""
        self._gone: OrderedDict[bytes, Trainer] = OrderedDict()
        self._left: dict[bytes, Trainer] = {}
        """Since somebody looked."""

    def greeted(self, session: bytes, run: str, process_rank: int, world_size: int, now: float) -> None:
        """A client said hello: a new one, or one that comes back. What went before it in its place is not missed any
        more: the same session, the same process of the job, and processes that a smaller job has not."""
        back = self._gone.pop(session, None)
        for other in [gone for gone in self._gone.values() if gone.run == run]:
            if other.process_rank == process_rank or other.process_rank >= world_size:
                del self._gone[other.session]
        self._remove(session)
        trainer = Trainer(session, run, process_rank, world_size, now)
        if back is not None and back.run == run:
            trainer.step, trainer.stats = back.step, back.stats
        self._here[session] = self._runs.setdefault(run, {})[session] = trainer

    def pushed(self, session: bytes, step: int) -> None:
        if (trainer := self._here.get(session)) is not None:
            trainer.step = step

    def told(self, session: bytes, stats: Stats, now: float) -> None:
        if (trainer := self._here.get(session)) is None:
            return
        before, trainer.stats, trainer.told_at = trainer.stats.step, stats, now
        if trainer.step is not None and stats.step is not None and before is not None and stats.step < before:
            trainer.step = stats.step  # it went back to a checkpoint

    def left(self, session: bytes) -> None:
        """It said bye, or was sent away."""
        if (trainer := self._remove(session)) is not None and len(self._left) < MAX_GONE:
            self._left[session] = trainer

    def lost(self, session: bytes, why: str, now: float) -> None:
        """It went without a word. One that never pushed anything is not missed."""
        trainer = self._remove(session)
        if trainer is None or trainer.step is None:
            return
        trainer.gone_at, trainer.why = now, why
        self._gone[session] = trainer
        if len(self._gone) > MAX_GONE:
            self._gone.popitem(last=False)

    def _remove(self, session: bytes) -> Trainer | None:
        if (trainer := self._here.pop(session, None)) is not None:
            del self._runs[trainer.run][session]
            if not self._runs[trainer.run]:
                del self._runs[trainer.run]
        return trainer

    def get(self, session: bytes) -> Trainer | None:
        """One that is here, or gone."""
        return self._here.get(session) or self._gone.get(session)

    def runs(self) -> Iterable[str]:
        """Those that have somebody here."""
        return self._runs.keys()

    def of(self, run: str) -> list[Trainer]:
        """Who is here of a run."""
        return list(self._runs.get(run, {}).values())

    def take_left(self) -> list[Trainer]:
        """Who left since the last call."""
        left, self._left = list(self._left.values()), {}
        return left

    def gone(self) -> Iterator[Trainer]:
        """Who went last comes last."""
        return iter(self._gone.values())

    def forget(self, run: str) -> None:
        for session in [trainer.session for trainer in self._gone.values() if trainer.run == run]:
            del self._gone[session]

    def describe(self) -> list[dict[str, Any]]:
        """Each process, those here first: for people."""
        rows = [trainer.to_json() for trainer in (*self._here.values(), *self._gone.values())]
        return rows[:MAX_PROCESSES_TOLD]

    def summary(self) -> list[dict[str, Any]]:
        """A row a run that has somebody here."""
        gone: dict[str, int] = {}
        for trainer in self._gone.values():
            gone[trainer.run] = gone.get(trainer.run, 0) + 1
        told = list(self._runs.items())[-MAX_RUNS_TOLD:]
        return [_sum_up(run, list(trainers.values()), gone.get(run, 0)) for run, trainers in told]


_MOST = (
    *("share", "max_overhead", "push_seconds", "step_seconds", "elapsed_seconds"),
    *("every_steps", "oldest_steps", "num_never"),
)
_SUMS = ("num_skipped", "num_dropped", "num_replaced", "wire_bytes")


def _sum_up(run: str, trainers: list[Trainer], num_gone: int) -> dict[str, Any]:
    """Of a job's processes together: the dearest, the stalest, and the sums."""
    steps = [trainer.newest_step for trainer in trainers if trainer.newest_step is not None]
    row: dict[str, Any] = {
        "run": run,
        "world_size": max(trainer.world_size for trainer in trainers),
        "num_here": len(trainers),
        "num_gone": num_gone,
        "step": max(steps, default=None),
        "steps_apart": max(steps) - min(steps) if steps else 0,
        "paths": sorted({trainer.stats.path for trainer in trainers if trainer.stats.path is not None}),
    }
    for keys, together in ((_MOST, max), (_SUMS, sum), (("num_layers", "device_bytes"), max)):
        for key in keys:
            values = [value for trainer in trainers if (value := getattr(trainer.stats, key)) is not None]
            if values:
                row[key] = together(values)
    return row
