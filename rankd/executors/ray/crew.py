"""The actors of a Ray cluster that measure: as many as there is room for, started again where they die."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rankd.executors.ray.actor import VERSIONS, Worker
from rankd.executors.ray.cluster import ClusterError, Resources

log = logging.getLogger("rankd.ray")

MAX_PAUSE_SECONDS = 30.0
"""Before the next start, where one worker after the other dies before it has measured anything."""


@dataclass(slots=True, eq=False)
class Member:
    """An actor."""

    actor: Any
    has_measured: bool = False
    host: str = ""
    pid: int = 0


class Crew:
    """`events` is given ("hello", member, future) once a member is there or has failed. For one thread."""

    def __init__(
        self, measure: Mapping[str, Any], use_gpus: bool, max_workers: int, events: Callable[..., None]
    ) -> None:
        self._measure = dict(measure)
        self._use_gpus, self._max_workers = use_gpus, max_workers
        self._events = events
        self._members: set[Member] = set()
        self.on_gpu = False
        self.num_wanted = 0
        self._num_fruitless = 0
        self._not_before = 0.0

    def fit(self, has: Resources) -> None:
        """One for each GPU or, where there is none, for each core. A cluster may grow; whoever is there stays."""
        if not self._members:
            self.on_gpu = self._use_gpus and has.num_gpus > 0
        self.num_wanted = min(has.num_gpus if self.on_gpu else has.num_cores, self._max_workers)
        self.fill()

    def fill(self) -> None:
        """Start who is missing, unless the last ones were of no use."""
        import ray

        while len(self._members) < self.num_wanted and time.monotonic() >= self._not_before:
            needs = {"num_gpus": 1, "num_cpus": 0} if self.on_gpu else {"num_cpus": 1}
            options: dict[str, Any] = {**needs, "max_restarts": 0, "scheduling_strategy": "SPREAD"}
            actor: Any = ray.remote(**options)(Worker).remote(self._measure, self.on_gpu)
            member = Member(actor)
            self._members.add(member)
            actor.hello.remote().future().add_done_callback(
                lambda future, member=member: self._events("hello", member, future)
            )

    def greet(self, member: Member, told: Mapping[str, Any]) -> None:
        """It is there. ClusterError where it would give other numbers than this host."""
        if told["versions"] != VERSIONS:
            raise ClusterError(f"{told['host']} has {told['versions']}; expected what this host has, {VERSIONS}")
        member.host, member.pid = str(told["host"]), int(told["pid"])
        log.info("worker host=%s pid=%d", told["host"], told["pid"])

    def measured(self, member: Member) -> None:
        """It is of use, and so will be who takes its place."""
        member.has_measured, self._num_fruitless = True, 0

    def lose(self, member: Member) -> None:
        """It is dead, or is to be: another one is started by `fill`."""
        import ray

        self._members.discard(member)
        ray.kill(member.actor)
        self._num_fruitless = 0 if member.has_measured else self._num_fruitless + 1
        if self._num_fruitless > 1:
            self._not_before = time.monotonic() + min(MAX_PAUSE_SECONDS, 0.5 * 2 ** min(self._num_fruitless, 8))
