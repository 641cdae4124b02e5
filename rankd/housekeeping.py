"""What is to be done once a heartbeat: say that the daemon lives, give up what timed out, look at what may go wrong."""

from __future__ import annotations

import time

from rankd.buffers import buffers
from rankd.composition import Composition
from rankd.faults import ClockWatch
from rankd.openness import Openness
from rankd.supervise import Stall


class Housekeeping:
    """`now` is monotonic, in seconds."""

    def __init__(self, parts: Composition, now: float) -> None:
        self._parts = parts
        self._clock, self._stall = ClockWatch(time.time, time.monotonic), Stall()
        self._openness = Openness(parts.config.insecure, parts.sockets.open_to_users, now)

    def once(self, now: float) -> None:
        self._parts.publish.heartbeat()
        self._look_after_trainers(now)
        self._parts.record.watch()
        self._cut_revoked()
        self._look_for_faults(now)
        self._forget_an_idle_run(now)
        self._openness.look(now)
        buffers.trim(now)

    def _look_after_trainers(self, now: float) -> None:
        """Who lives, who is gone, what will not be whole without them, and how often the others are to push."""
        receive, assemble, jobs = self._parts.receive, self._parts.assemble, self._parts.jobs
        for session in receive.heartbeat():
            assemble.lose(session)
        lost = assemble.expire(now, jobs.sessions_gone(now), receive.runs())
        receive.acknowledge_all(jobs.answers(lost))
        for alert in jobs.gone.look(jobs.trainers, now):
            self._parts.record.alert(alert)
        for run, plan in jobs.pacing.review(jobs.trainers, now).items():
            receive.announce(run, plan)
        for session, plan in jobs.pacing.missed(jobs.trainers):
            receive.acknowledge([session], plan)

    def _cut_revoked(self) -> None:
        if revoked := self._parts.authority.refresh():
            self._parts.receive.drop(revoked)
            self._parts.sockets.gate.cut_users(revoked, "revoked")

    def _look_for_faults(self, now: float) -> None:
        parts = self._parts
        parts.fault("clock", self._clock.check())
        parts.fault("history_log", parts.history.overgrown)
        parts.health.stalled = self._stall.check(parts.mailbox.num_unfinished, parts.mailbox.num_done, now)
        parts.fault("stalled", parts.health.stalled)
        for alert in parts.faults.expire():
            parts.record.alert(alert)

    def _forget_an_idle_run(self, now: float) -> None:
        """Where room is wanted for another; not while something of it may still be unwritten."""
        parts = self._parts
        if not parts.record.num_pending and (run := parts.assemble.idle_run(now, parts.receive.runs())) is not None:
            for memory in (parts.assemble, parts.detect, parts.current, parts.planner, parts.mailbox, parts.jobs):
                memory.forget(run)
