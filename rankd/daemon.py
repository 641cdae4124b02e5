"""The daemon's loops, and how it starts and shuts down. What they run on is put together in composition.py."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import time
from collections.abc import Callable, Mapping
from functools import partial

from rankd.alertlog import AlertLog
from rankd.composition import Composition
from rankd.config import ServeConfig
from rankd.executors import MeasureError
from rankd.faults import DAEMON_RUN
from rankd.housekeeping import Housekeeping
from rankd.judge import Key
from rankd.peers import Peer
from rankd.plan import keep_reviewed
from rankd.presence import Ready
from rankd.records import LayerStep, Measurement, Snapshot
from rankd.stages.record import Outcome
from rankd.stages.reports import Report
from rankd.store.errors import StoreError
from rankd.supervise import stop_with_stdin
from rankd_client.wire import Ack, AlertNotice, Chunk, Refusal, Reported, WireError

__all__ = ["Daemon", "Ready"]

log = logging.getLogger("rankd.daemon")

FLUSH_SECONDS = 10.0
"""For a history that cannot be written at the end: all of it ends within 20 s."""


class Daemon:
    """Receive ▶ assemble ▶ [mailbox] ▶ measure ▶ detect ▶ record ▶ [history] ▶ publish.

    Construction binds every address and opens the history (BindError, ConfigError or ValueError name what cannot be
    had) and must happen in a running event loop.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.stop = asyncio.Event()
        self.drained = True
        """False where the daemon stopped before it had measured all that was waiting."""
        self.log_alert = AlertLog(time.monotonic)
        with contextlib.ExitStack() as cleanup:
            self.parts = parts = Composition(config, self.stop, cleanup)
            self._cleanup = cleanup.pop_all()
        # The way of a snapshot, in its order:
        self.receive, self.assemble, self.mailbox = parts.receive, parts.assemble, parts.mailbox
        self.measure, self.detect, self.record, self.publish = parts.measure, parts.detect, parts.record, parts.publish
        # Beside it:
        self.counters, self.history, self.current = parts.counters, parts.history, parts.current
        self.reports, self.jobs, self.planner, self.health = parts.reports, parts.jobs, parts.planner, parts.health

    async def intake(self) -> None:
        """Chunks in, whole snapshots into the mailbox. Never waits for analysis."""
        while True:
            peer, chunk = await self.receive.next()
            if isinstance(chunk, Reported):
                await self._take_report(peer, chunk)
                continue
            try:
                last_steps = await self._last_steps(peer, chunk)
                now, confirm = time.monotonic(), self.receive.confirm
                assembled = self.assemble.add(peer.run, peer.session, chunk, now, last_steps, confirm)
            except WireError as error:
                self.receive.refuse_chunk(peer, chunk, error)
                self._answer_lost()
                continue
            self.jobs.trainers.pushed(peer.session, chunk.step)
            self.receive.give_credit(peer, chunk)
            self._answer_lost()
            if assembled.settled:
                self.receive.acknowledge([peer.session], Ack("recorded", chunk.layer, chunk.step, chunk.role))
            if assembled.snapshot is not None:
                self._await_measuring(assembled.snapshot)

    async def _take_report(self, peer: Peer, message: Reported) -> None:
        """Credit comes back once it is judged: what waits is bounded by it."""
        try:
            last_steps = await self._last_steps(peer, message)
            measurement = self.reports.read(peer.run, message)
            taken = self.assemble.report(peer.run, peer.session, message, time.monotonic(), last_steps)
        except WireError as error:
            self.receive.refuse_chunk(peer, message, error)
            return
        self.jobs.trainers.pushed(peer.session, message.step)
        if taken.is_new:
            self.reports.put(Report(measurement, partial(self.receive.give_credit, peer, message)))
            return
        self.receive.give_credit(peer, message)
        if taken.settled:
            self.receive.acknowledge([peer.session], Ack("recorded", message.layer, message.step, message.role))

    async def _last_steps(self, peer: Peer, part: Chunk | Reported) -> Mapping[tuple[str, str], int] | None:
        """What the history has of a run that is new here; None where nobody asks, or nobody knows."""
        return await self.history.last_steps(peer.run) if self.assemble.asks(peer.run, part) else None

    def _await_measuring(self, snapshot: Snapshot) -> None:
        """Into the mailbox, where the newest of a layer wins."""
        self.reports.put(snapshot)
        self.planner.arrived(snapshot, time.monotonic())
        self.jobs.pacing.whole(snapshot.run, snapshot.step)
        for displaced in self.mailbox.put(snapshot):
            old = displaced.snapshot
            self.reports.over(old)
            self.jobs.pacing.displaced(old.run, old.step)
            self.record.superseded(*old.key)
            self._settle((*old.key, old.step), "superseded", displaced.by_step)

    async def analysis(self) -> None:
        """Snapshots out of the mailbox, as many at once as the executor has slots, in order within a layer."""
        async with asyncio.TaskGroup() as measuring:
            while (snapshot := await self.mailbox.get()) is not None:
                measuring.create_task(self._analyse(snapshot))

    async def _analyse(self, snapshot: Snapshot) -> None:
        seconds: float | None = None
        try:
            measurements = await self.measure(snapshot)
        except MeasureError as error:
            self._give_up(snapshot, error)
        else:
            seconds = sum(measurement.measure_seconds for measurement in measurements)
            await self._judge(measurements)
        self.reports.over(snapshot)
        self.mailbox.done(snapshot, seconds)

    def _give_up(self, snapshot: Snapshot, error: MeasureError) -> None:
        """One matrix cannot be measured here: its trainers hear so, and everybody that it happened."""
        self.counters["dropped_unmeasured"] += 1
        self.parts.fault("measure", f"{error}")
        sessions = self.assemble.settle((*snapshot.key, snapshot.step))
        refusal = Refusal("measure_failed", str(error), snapshot.layer, snapshot.step, snapshot.role)
        self.receive.acknowledge(sessions, refusal)

    async def reporting(self) -> None:
        """What trainers report, each once nothing of its layer is before it: straight to the detectors."""
        async with asyncio.TaskGroup() as judging:
            while True:
                judging.create_task(self._judge_report(await self.reports.next()))

    async def _judge_report(self, report: Report) -> None:
        await self._judge([report.measurement])
        report.taken()
        self.reports.over(report)

    async def _judge(self, measurements: list[Measurement]) -> None:
        for measurement in measurements:
            for layer in self.detect.unknown(measurement):
                await self._recall(layer)
        self.record.together([(m, self.detect(m), self.detect.due(m)) for m in measurements])

    async def _recall(self, layer: Key) -> None:
        """A layer from before the start goes on where its record ends; one that cannot be read begins anew."""
        judge = await self.history.recall(lambda archive: self.detect.recall(layer, archive.recall))
        if judge is not None:
            self.detect.take(judge)

    async def delivery(self) -> None:
        """What is recorded goes out, and its trainers hear so."""
        while True:
            self._deliver(await self.record.next())

    def _deliver(self, outcome: Outcome) -> None:
        self.publish(outcome.events)
        for event in outcome.events:
            if event.kind == "alert":
                self.receive.notify(event.run, AlertNotice(event.body))
                self.log_alert(event.body)
        for key, word in outcome.settled:
            self._settle(key, word)

    def _settle(self, key: LayerStep, state: str, by_step: int | None = None) -> None:
        _, layer, role, step = key
        self.receive.acknowledge(self.assemble.settle(key), Ack(state, layer, step, role, by_step=by_step))

    def _answer_lost(self) -> None:
        """Trainers hear of what went for want of room, or cannot be whole any more."""
        self.receive.acknowledge_all(self.jobs.answers(self.assemble.take_lost()))

    async def housekeeping(self) -> None:
        """Once a heartbeat, beside everything else."""
        housekeeping = Housekeeping(self.parts, time.monotonic())
        while True:
            await asyncio.sleep(self.config.limits.heartbeat_seconds)
            housekeeping.once(time.monotonic())

    async def run(self, announce: Callable[[Ready], None]) -> None:
        """Call `announce` once pushes are taken; serve until `stop` is set or SIGTERM or SIGINT comes; then finish what
        is waiting, within `drain_seconds`."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, self.stop.set)
        if self.config.while_stdin:
            stop_with_stdin(self.stop)
        parts = self.parts
        with self._cleanup:
            self._begin()
            async with asyncio.TaskGroup() as tasks:
                analysis = tasks.create_task(self.analysis())
                intake = tasks.create_task(self.intake())
                side = [
                    self.delivery(),
                    self.reporting(),
                    self.housekeeping(),
                    parts.query.serve(),
                    self.publish.watch_subscriptions(),
                ]
                # That this loop turns is what is told: a layer may take minutes. A loop that fails ends the process.
                side += [parts.crossing.watch(), parts.presence.notifier.keep_alive(lambda: True)]
                side.append(keep_reviewed(self.planner, self.config.limits.heartbeat_seconds))
                others = [tasks.create_task(task) for task in side]
                tasks.create_task(parts.http.serve())
                parts.presence.begin(self.ready(), announce, parts.authority.public_key)
                await self.stop.wait()
                parts.presence.end()
                await self._drain(intake, analysis)
                for task in others:
                    task.cancel()
                parts.http.stop()

    def close(self) -> None:
        """Lets go of everything that construction took; `run` does so by itself."""
        self._cleanup.close()

    def ready(self) -> Ready:
        return Ready(**self.parts.sockets.addresses, http=self.parts.http.address)

    def _begin(self) -> None:
        """Go on where the last daemon was; say what is wrong from the start."""
        self.history.begin(
            self.current,
            on_committed=partial(self.parts.crossing.call, self.record.committed),
            on_fault=partial(self.parts.crossing.call, self._history_fault),
        )
        self.parts.faults.restore(self.current.firing(DAEMON_RUN))
        self.jobs.gone.restore(self.current.all_firing())
        if (file := self.history.moved_aside) is not None:
            text = f"the history was damaged; it is now {file.name}, and a new one was begun"
            self.parts.fault("history_moved", text)
        for alert in self.parts.faults.settle():
            self.record.alert(alert)

    def _history_fault(self, error: StoreError | None) -> None:
        self.history.look_anew()
        self.record.fault(error)
        if error is not None and error.begun_anew:
            self.parts.fault("history_moved", str(error))

    async def _drain(self, intake: asyncio.Task[None], analysis: asyncio.Task[None]) -> None:
        log.info("stopping num_waiting=%d", len(self.mailbox))
        intake.cancel()
        self.mailbox.close()
        until = time.monotonic() + self.config.limits.drain_seconds
        try:
            await asyncio.wait_for(analysis, self.config.limits.drain_seconds)
        except TimeoutError:
            self.drained = False
            log.warning("stopping with num_waiting=%d; their clients keep them", len(self.mailbox))
        if not await asyncio.to_thread(self.history.flush, min(FLUSH_SECONDS, max(0.5, until - time.monotonic()))):
            log.error("stopping with num_unwritten=%d; their clients keep them", self.record.num_pending)
        await asyncio.sleep(0)  # what the writer's thread said last
        self._deliver(self.record.take_outcome())
        self.publish.heartbeat(state="stopping")
        self.receive.goodbye()
