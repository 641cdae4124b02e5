"""The processes that push, as jobs: what is known of them, how they are paced, which of them are gone. Pure."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from rankd.pacing import Pacing
from rankd.race import Lost
from rankd.trainers import Gone, Trainers
from rankd_client.wire import Ack, Refusal

WHY_REFUSED = {
    "timed_out": "not all shards came",
    "process_gone": "a process that has the rest of it is gone",
}


class Jobs:
    """`origin`: this daemon's own, for the ids of alerts. `grace_seconds`: see rankd.trainers.gone."""

    def __init__(self, heartbeat_seconds: float, grace_seconds: float, origin: str) -> None:
        self.trainers = Trainers()
        self.pacing = Pacing(heartbeat_seconds)
        self.gone = Gone(origin, time.time, grace_seconds)
        self._grace_seconds = grace_seconds

    def sessions_gone(self, now: float) -> frozenset[bytes]:
        """Those that will not come back in time for what waits for their part."""
        gone = self.trainers.gone()
        return frozenset(t.session for t in gone if now - (t.gone_at or now) >= self._grace_seconds)

    def answers(self, lost: Iterable[Lost]) -> Iterator[tuple[frozenset[bytes], Ack | Refusal]]:
        """What clients hear of layers that will not be whole. Where their processes are too far apart, or there is too
        little room, they will be told to push less often."""
        for item in lost:
            run, layer, role, step = item.key
            if item.why in WHY_REFUSED:
                yield item.sessions, Refusal("timed_out", WHY_REFUSED[item.why], layer, step, role)
                continue
            if not item.is_shard:
                self.pacing.lost(run, step)
            yield item.sessions, Ack("superseded", layer, step, role, by_step=item.by_step)

    def summary(self) -> list[dict[str, Any]]:
        """A row a run, with the interval of its plan where it has one."""
        every = self.pacing.describe()
        return [{**row, "plan_every_steps": every.get(row["run"], 0)} for row in self.trainers.summary()]

    def forget(self, run: str) -> None:
        for memory in (self.trainers, self.gone, self.pacing):
            memory.forget(run)
