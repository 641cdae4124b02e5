"""How often the processes of a job push: one plan for all, from what pushing costs and what becomes of it. Pure.

In a job of several processes none may choose by itself, or they would push different steps, and no layer would ever be
whole. So the daemon hands out an interval, and the step from which it holds: one that no process has reached yet.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rankd.costs import CLEARLY, Costs
from rankd.trainers import Stats, Trainer, Trainers
from rankd_client.wire import MAX_STEP, Plan

log = logging.getLogger("rankd.pacing")

MAX_EVERY = 1 << 16
"""Steps; what a client tells must not silence its job for ever."""

MIN_SECONDS = 1e-9
"""What a client tells may be as near to nothing as it likes, and is divided by."""

MAX_LOST = 0.05
"""Share of a review's layers that may be lost before it counts as too much."""

MIN_OUTCOMES = 8
"""Layers; of fewer nothing is concluded."""

MAX_DISPLACED = 0.5
"""Share of the whole layers that may give way to newer ones, unmeasured. More are pushed for nothing."""

LEAD_HEARTBEATS = 1.0
"""A plan is on its way at once, but a process may be busy. To this comes how old what is known of the steps is."""

ALONE_LEAD = 2
"""Steps. One process that alone has something to send may hear when it will, as may those that come after it."""

MIN_PUSHES = 4
"""Before what a process tells of its costs counts: the first push finds nothing warm."""

MAX_LEAD = 100_000
"""Steps; a client may tell that it makes a million a second."""

JOIN_HEARTBEATS = 3.0
"""After a process came, until what gets lost is taken for too much: it and the others began at different steps."""

LAGGARD_SECONDS = 30.0
"""A client remembers the plan before the newest and no other: the next one waits for the slowest process to get to the
first step of the last, but for so long only: it may be frozen."""

CALM_SECONDS = 20.0
"""Without losses, before the interval is shortened again; twice as long each time that this proved too short."""

MAX_CALM_SECONDS = 1280.0

START_CALM_SECONDS = 3.0
"""The same from the start of a job up to its first losses, where each time is half the interval."""

START_PROCESSES = 4
"""A job of more begins with a plan, sparser the larger it is: 64 processes that push at every step until it is seen
that this is too much lose nearly all of a quarter of a minute."""


def round_up(every: float) -> int:
    """To 1, 2, 3, 4, 6, 8, 12, 16, …: costs are never quite the same, and a plan that changes costs a few layers."""
    power = 1 << max(0, math.ceil(math.log2(max(1.0, every))))
    return power * 3 // 4 if power >= 4 and every <= power * 3 / 4 else power


def next_shorter(every: int) -> int:
    """The interval before `every` in the same row."""
    return max(1, max((n for n in (round_up(every / 2), round_up(every * 0.6)) if n < every), default=1))


def first_plan(world_size: int) -> Plan:
    """The plan of a job of so many processes that nothing is known of yet."""
    return Plan() if world_size <= START_PROCESSES else Plan(1, 0, round_up(min(MAX_EVERY, world_size / 4)))


def every_by_cost(trainers: Sequence[Trainer], part: float = 1.0) -> int:
    """The interval that keeps each process within `part` of its `max_overhead`; 0 where that is any."""
    needed = 0.0
    for stats in (trainer.stats for trainer in trainers):
        if stats.max_overhead is not None and stats.push_seconds is not None and stats.step_seconds:
            needed = max(needed, stats.push_seconds / max(MIN_SECONDS, part * stats.max_overhead * stats.step_seconds))
    return 0 if needed <= 1.0 else round_up(min(MAX_EVERY, needed))


def _tells_costs(stats: Stats) -> bool:
    return stats.push_seconds is not None and (stats.num_pushes is None or stats.num_pushes >= MIN_PUSHES)


@dataclass(slots=True)
class Pacer:
    """One run. Counts are of steps for which the plan holds and all processes were there, since they were weighed."""

    plan: Plan = field(default_factory=Plan)
    num_whole: int = 0
    num_lost: int = 0
    num_displaced: int = 0
    _num_good: int = 0
    """Whole layers under this plan, in all."""
    _counts_from: int = 0
    """The first step that counts."""
    _issued_at: float = 0.0
    _issued_step: int = 0
    """The newest at that moment."""
    _seen: tuple[int, float] | None = None
    """The newest step at the last review, and when that was."""
    _costs: Costs = field(default_factory=Costs)
    _congested: int = 0
    """The interval that losses ask for; 0: they ask for none."""
    _was_lossy: bool = False
    _calm_since: float | None = None
    _calm_seconds: float = START_CALM_SECONDS
    _eased_at: float | None = None
    """When the interval was shortened last, if that was not undone yet."""

    def __post_init__(self) -> None:
        self._congested = self.plan.every_steps

    def counts(self, step: int) -> bool:
        return step >= self._counts_from

    def review(self, trainers: Sequence[Trainer], now: float, heartbeat_seconds: float) -> Plan | None:
        """A new plan for the job whose processes are `trainers`, or None: the old one holds."""
        steps = [trainer.newest_step for trainer in trainers if trainer.newest_step is not None]
        if not steps:
            return None
        newest = max(steps)
        lead = self._lead(trainers, newest, now, heartbeat_seconds)
        if newest < self._issued_step and newest + lead < self.plan.first_step:  # they went back to a checkpoint
            return self._issue(self.plan.every_steps, newest, lead, now)
        if min(steps) < self.plan.first_step and now - self._issued_at < LAGGARD_SECONDS:
            return None
        if now - max(trainer.since for trainer in trainers) < JOIN_HEARTBEATS * heartbeat_seconds:
            self._begin(max(newest + 1, self.plan.first_step))  # who came late pushed other steps than the others
        else:
            self._weigh(max([1, self.plan.every_steps, *(t.stats.every_steps or 0 for t in trainers)]), now)
        if told := [trainer for trainer in trainers if _tells_costs(trainer.stats)]:
            self._costs.review(every_by_cost(told), every_by_cost(told, CLEARLY), now)
        every = max(self._costs.every, self._congested)
        return None if every == self.plan.every_steps else self._issue(every, newest, lead, now)

    def _lead(self, trainers: Sequence[Trainer], newest: int, now: float, heartbeat_seconds: float) -> int:
        """Steps that the fastest makes until the slowest has heard."""
        told = (trainer.stats.step_seconds for trainer in trainers)
        rates = [1.0 / max(MIN_SECONDS, seconds) for seconds in told if seconds]
        if self._seen is not None and now > self._seen[1]:
            rates.append((newest - self._seen[0]) / (now - self._seen[1]))
        self._seen = newest, now
        if len(trainers) == 1:
            return ALONE_LEAD
        # They go together, so who told last tells how far all are. One that is frozen is waited for elsewhere.
        age = min(max(0.0, now - max(trainer.told_at for trainer in trainers)), 2 * heartbeat_seconds)
        return 2 + math.ceil(min(MAX_LEAD, (LEAD_HEARTBEATS * heartbeat_seconds + age) * max([0.0, *rates])))

    def _weigh(self, in_force: int, now: float) -> None:
        """Whether layers get lost, and what interval that asks for."""
        num_whole, num_outcomes = self.num_whole, self.num_whole + self.num_lost
        if num_outcomes >= MIN_OUTCOMES:
            is_lossy = self.num_lost > MAX_LOST * num_outcomes or self.num_displaced > MAX_DISPLACED * num_whole
            if is_lossy and self._was_lossy:  # once may be a process that stood still for a moment
                # Where three in four are lost, four times the interval at once.
                times = 2 ** min(3, max(1, math.ceil(math.log2(num_outcomes / max(1, num_whole)))))
                self._back_off(min(MAX_EVERY, round_up(in_force * times)), now)
            elif is_lossy:
                self._calm_since = now
            self._was_lossy = is_lossy
            self._num_good += num_whole
            self._begin(self._counts_from)
        if self._calm_since is None:
            self._calm_since = now
        is_calm = now - self._calm_since >= self._calm_seconds and self._num_good >= MIN_OUTCOMES
        if self._congested and is_calm:
            is_start = self._calm_seconds == START_CALM_SECONDS
            shorter = round_up(self._congested / 2) if is_start else next_shorter(self._congested)
            self._congested = 0 if shorter <= 1 else shorter
            self._eased_at = self._calm_since = now

    def _back_off(self, every: int, now: float) -> None:
        if self._calm_seconds == START_CALM_SECONDS:
            self._calm_seconds = CALM_SECONDS
        elif self._eased_at is not None and now - self._eased_at < self._calm_seconds:
            self._calm_seconds = min(MAX_CALM_SECONDS, 2 * self._calm_seconds)
        self._congested, self._eased_at, self._calm_since = every, None, now

    def _begin(self, counts_from: int) -> None:
        self._counts_from = counts_from
        self.num_whole = self.num_lost = self.num_displaced = 0

    def _issue(self, every: int, newest: int, lead: int, now: float) -> Plan:
        self.plan = Plan(self.plan.plan_id + 1, min(MAX_STEP, newest + lead), every)
        self._issued_at, self._issued_step, self._was_lossy = now, newest, False
        self._num_good, self._calm_since = 0, None
        self._begin(self.plan.first_step)
        return self.plan


class Pacing:
    """The plans of all runs that have several processes; those that have one pace themselves."""

    def __init__(self, heartbeat_seconds: float) -> None:
        self._heartbeat_seconds = heartbeat_seconds
        self._pacers: dict[str, Pacer] = {}

    def plan(self, run: str, world_size: int) -> Plan:
        """What a client of a job of `world_size` processes is told when it connects."""
        if world_size == 1:
            return Plan()
        pacer = self._pacers.get(run)
        return first_plan(world_size) if pacer is None else pacer.plan

    def whole(self, run: str, step: int) -> None:
        """A layer was assembled."""
        if (pacer := self._pacers.get(run)) is not None:
            pacer.num_whole += pacer.counts(step)

    def lost(self, run: str, step: int) -> None:
        """A layer will not be, because processes pushed different steps of it, or for want of room."""
        if (pacer := self._pacers.get(run)) is not None:
            pacer.num_lost += pacer.counts(step)

    def displaced(self, run: str, step: int) -> None:
        """A whole layer gave way to a newer one before it was measured."""
        if (pacer := self._pacers.get(run)) is not None:
            pacer.num_displaced += pacer.counts(step)

    def review(self, trainers: Trainers, now: float) -> dict[str, Plan]:
        """To be called once a heartbeat, `now` in monotonic seconds: the new plans, by run."""
        plans = {}
        for run in trainers.runs():
            job = [trainer for trainer in trainers.of(run) if trainer.world_size > 1]
            # One that was taken something of has its run known, of which there are so many; others may tell any step.
            if all(trainer.step is None for trainer in job):
                continue
            if run not in self._pacers:
                self._pacers[run] = Pacer(first_plan(max(trainer.world_size for trainer in job)))
            plan = self._pacers[run].review(job, now, self._heartbeat_seconds)
            if plan is not None:
                plans[run] = plan
                log.info("plan run=%r every_steps=%d first_step=%d", run, plan.every_steps, plan.first_step)
        return plans

    def missed(self, trainers: Trainers) -> Iterator[tuple[bytes, Plan]]:
        """Sessions whose process, beyond the first step of its run's plan, tells another interval than it would have by
        that, and than the others of its job: an answer may be lost. The user's own interval, where it is longer than
        the plan's, is that of them all."""
        for run, pacer in self._pacers.items():
            told = [
                (trainer.session, trainer.stats.every_steps)
                for trainer in trainers.of(run)
                if trainer.world_size > 1
                and trainer.stats.every_steps is not None
                and (trainer.stats.step or 0) >= pacer.plan.first_step
            ]
            shortest = min((every for _, every in told), default=0)
            implied = max(pacer.plan.every_steps, shortest)
            yield from ((session, pacer.plan) for session, every in told if every != implied)

    def forget(self, run: str) -> None:
        self._pacers.pop(run, None)

    def describe(self) -> dict[str, int]:
        """Of each run that has a plan, its interval."""
        return {run: pacer.plan.every_steps for run, pacer in self._pacers.items() if pacer.plan.plan_id}
