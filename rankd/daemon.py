"""The composition root: builds the stages, runs the loops, shuts down in order."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rankd.alertlog import AlertLog
from rankd.answers import Answers
from rankd.auth import Authority, Keyring
from rankd.buffers import buffers
from rankd.config import Limits, ServeConfig
from rankd.crossing import Crossing
from rankd.current import Current
from rankd.executors import EXECUTORS, MeasureError, choose_devices, settings_of
from rankd.faults import DAEMON_RUN, ClockWatch, Faults
from rankd.health import Health
from rankd.history import History
from rankd.jobs import Jobs
from rankd.judge import Key
from rankd.lent import ArenaListener, Lenders
from rankd.mailbox import Mailbox
from rankd.openness import Openness
from rankd.peers import Peer
from rankd.plan import Planner, keep_reviewed
from rankd.presence import Presence, Ready
from rankd.query import QueryServer
from rankd.quota import Quota, share
from rankd.race import Lost
from rankd.records import LayerStep, Measurement, Snapshot
from rankd.sockets import Sockets
from rankd.stages.assemble import Assemble
from rankd.stages.detect import Detect
from rankd.stages.measure import Measure
from rankd.stages.publish import Publish
from rankd.stages.receive import Receive
from rankd.stages.record import Outcome, Record
from rankd.stages.reports import Report, Reports
from rankd.store.errors import StoreError
from rankd.supervise import Stall, stop_with_stdin
from rankd.web.listener import HttpListener
from rankd_client.wire import Ack, AlertNotice, Refusal, Reported, WireError

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
        self.counters: Counter[str] = Counter()
        self.crossing, self.log_alert = Crossing(), AlertLog(time.monotonic)
        with contextlib.ExitStack() as cleanup:
            self._build(config, config.limits, self.counters, cleanup)
            self._cleanup = cleanup.pop_all()

    def _build(
        self, config: ServeConfig, limits: Limits, counters: Counter[str], cleanup: contextlib.ExitStack
    ) -> None:
        keyring = Keyring(config.keys) if config.asks_for_keys and config.keys is not None else None
        self.authority = Authority(keyring)
        self.presence = Presence(config)
        cleanup.callback(self.presence.end)
        self.history = History(config.data, config.history, counters, self.authority.disk_quotas, self._unread)
        cleanup.callback(self.history.close)
        streams = self.history.streams
        # An origin of its own: the stream outlives us, and our counts begin anew.
        self.faults = Faults(secrets.token_hex(8), time.time, time.monotonic)
        settings = settings_of(config.measure)
        self.executor = EXECUTORS[config.executor](choose_devices(config.device), self._fault_from_thread, settings)
        cleanup.callback(self.executor.close)
        self.sockets = Sockets(config, self.authority, counters, self._fault_from_thread)
        cleanup.callback(self.sockets.close)
        self.current = Current(streams, limits, counters)
        doors, quota = self.sockets.doors, self._quota
        self.jobs = Jobs(limits.heartbeat_seconds, limits.trainer_grace_seconds, secrets.token_hex(8))
        self.receive = Receive(
            self.sockets.push, limits, streams, time.monotonic, counters, self.current.firing, doors["push"],
            self.jobs.trainers, self.jobs.pacing.plan, self._lenders(limits, counters, cleanup),
        )  # fmt: skip
        self.assemble = Assemble(limits, counters, quota)
        self.mailbox = Mailbox(limits.max_mailbox_bytes, self.executor.num_slots, counters, quota, self.receive.runs)
        gauges, num_workers = self._gauges(), self.executor.num_workers
        self.planner = Planner(config.measure, num_workers, gauges["device"], gauges["lag_seconds"], limits.max_layers)
        self.measure = Measure(self.executor, time.time, self.planner, counters, settings)
        self.detect, self.reports = Detect(config.detect), Reports(counters, time.time)
        on_fault, patience_seconds = partial(self._fault, "history"), config.history.patience_seconds
        self.record = Record(streams, self.current, counters, self.history.writer, patience_seconds, on_fault=on_fault)
        self.publish = Publish(self.sockets.alerts, streams, time.time, counters, doors["alerts"])
        answers = Answers(self.current, counters, self.history.reading, self.planner.describe, self.jobs.summary)
        self.query = QueryServer(self.sockets.query, answers, counters, doors["query"])
        processes = self.jobs.trainers.describe
        self.health = Health(self.stop, self.presence, self.faults, gauges, counters, processes)
        self.http = HttpListener(config, self.authority.http_token, self.health, counters)
        cleanup.callback(self.http.close)

    def _lenders(self, limits: Limits, counters: Counter[str], cleanup: contextlib.ExitStack) -> Lenders:
        """Clients on this host whose memory is read."""
        bound = self.sockets.arena
        lenders = Lenders(limits, counters, "" if bound is None else Path(bound.getsockname()).name)
        if bound is not None:
            cleanup.callback(ArenaListener(bound, lenders, limits, counters).close)
        return lenders

    def _gauges(self) -> dict[str, Callable[[], Any]]:
        return {
            "stream_id": lambda: self.history.streams.stream_id,
            "device": lambda: str(self.executor.device),
            "num_waiting": lambda: len(self.mailbox),
            "waiting_bytes": lambda: self.mailbox.num_bytes,
            "assembly_bytes": lambda: self.assemble.num_bytes,
            "num_unwritten": lambda: self.record.num_pending,
            "lag_seconds": lambda: round(self.mailbox.lag_seconds, 3),
            "plan": lambda: self.planner.describe(),
            "trainers": lambda: self.jobs.summary(),
        }

    async def intake(self) -> None:
        """Chunks in, whole snapshots into the mailbox. Never waits for analysis."""
        while True:
            peer, chunk = await self.receive.next()
            if isinstance(chunk, Reported):
                await self._take_report(peer, chunk)
                continue
            try:
                last_steps = await self.history.last_steps(peer.run) if self.assemble.asks(peer.run, chunk) else None
                now, confirm = time.monotonic(), self.receive.confirm
                assembled = self.assemble.add(peer.run, peer.session, chunk, now, last_steps, confirm)
            except WireError as error:
                self.receive.refuse_chunk(peer, chunk, error)
                self._lose(self.assemble.take_lost())
                continue
            self.jobs.trainers.pushed(peer.session, chunk.step)
            self.receive.give_credit(peer, chunk)
            self._lose(self.assemble.take_lost())
            if assembled.settled:
                self.receive.acknowledge([peer.session], Ack("recorded", chunk.layer, chunk.step, chunk.role))
            if assembled.snapshot is not None:
                self.reports.put(assembled.snapshot)
                self.planner.arrived(assembled.snapshot, time.monotonic())
                self.jobs.pacing.whole(peer.run, chunk.step)
                for displaced in self.mailbox.put(assembled.snapshot):
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
        try:
            measurements = await self.measure(snapshot)
        except MeasureError as error:
            self._give_up(snapshot, error)
        else:
            await self._judge(measurements)
        self.reports.over(snapshot)
        self.mailbox.done(snapshot)

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

    async def housekeeping(self) -> None:
        """Once a heartbeat: say that we live, give up what timed out, look at what may go wrong."""
        clock, stall = ClockWatch(time.time, time.monotonic), Stall()
        openness = Openness(self.config.insecure, self.sockets.open_to_users, time.monotonic())
        while True:
            await asyncio.sleep(self.config.limits.heartbeat_seconds)
            now = time.monotonic()
            self.publish.heartbeat()
            self._look_after_trainers(now)
            self.record.watch()
            if revoked := self.authority.refresh():
                self.receive.drop(revoked)
                self.sockets.gate.cut_users(revoked, "revoked")
            self._fault("clock", clock.check())
            self._fault("history_log", self.history.overgrown)
            self.health.stalled = stall.check(self.mailbox.num_unfinished, self.mailbox.num_done, now)
            self._fault("stalled", self.health.stalled)
            for alert in self.faults.expire():
                self.record.alert(alert)
            if not self.record.num_pending and (run := self.assemble.idle_run(now, self.receive.runs())) is not None:
                for memory in (self.assemble, self.detect, self.current, self.planner, self.jobs):
                    memory.forget(run)
            openness.look(now)
            buffers.trim(now)

    async def run(self, announce: Callable[[Ready], None]) -> None:
        """Call `announce` once pushes are taken; serve until `stop` is set or SIGTERM or SIGINT comes; then finish what
        is waiting, within `drain_seconds`."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signum, self.stop.set)
        if self.config.while_stdin:
            stop_with_stdin(self.stop)
        with self._cleanup:
            self._begin()
            async with asyncio.TaskGroup() as tasks:
                analysis = tasks.create_task(self.analysis())
                intake = tasks.create_task(self.intake())
                side = [
                    self.delivery(),
                    self.reporting(),
                    self.housekeeping(),
                    self.query.serve(),
                    self.publish.watch_subscriptions(),
                ]
                # That this loop turns is what is told: a layer may take minutes. A loop that fails ends the process.
                side += [self.crossing.watch(), self.presence.notifier.keep_alive(lambda: True)]
                side.append(keep_reviewed(self.planner, self.config.limits.heartbeat_seconds))
                others = [tasks.create_task(task) for task in side]
                tasks.create_task(self.http.serve())
                self.presence.begin(self.ready(), announce, self.authority.public_key)
                await self.stop.wait()
                self.presence.end()
                await self._drain(intake, analysis)
                for task in others:
                    task.cancel()
                self.http.stop()

    def close(self) -> None:
        """Lets go of everything that construction took; `run` does so by itself."""
        self._cleanup.close()

    def ready(self) -> Ready:
        return Ready(**self.sockets.addresses, http=self.http.address)

    def _begin(self) -> None:
        """Go on where the last daemon was; say what is wrong from the start."""
        self.history.begin(
            self.current,
            on_committed=partial(self.crossing.call, self.record.committed),
            on_fault=partial(self.crossing.call, self._history_fault),
        )
        self.faults.restore(self.current.firing(DAEMON_RUN))
        self.jobs.gone.restore(self.current.all_firing())
        if (file := self.history.moved_aside) is not None:
            self._fault("history_moved", f"the history was damaged; it is now {file.name}, and a new one was begun")
        for alert in self.faults.settle():
            self.record.alert(alert)

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

    def _look_after_trainers(self, now: float) -> None:
        """Who lives, who is gone, what will not be whole without them, and how often the others are to push."""
        for session in self.receive.heartbeat():
            self.assemble.lose(session)
        self._lose(self.assemble.expire(now, self.jobs.sessions_gone(now), self.receive.runs()))
        for alert in self.jobs.gone.look(self.jobs.trainers, now):
            self.record.alert(alert)
        for run, plan in self.jobs.pacing.review(self.jobs.trainers, now).items():
            self.receive.announce(run, plan)

    def _lose(self, lost: list[Lost]) -> None:
        for sessions, message in self.jobs.answers(lost):
            self.receive.acknowledge(sessions, message)

    async def _recall(self, layer: Key) -> None:
        """A layer from before the start goes on where its record ends; one that cannot be read begins anew."""
        judge = await self.history.recall(lambda archive: self.detect.recall(layer, archive.recall))
        if judge is not None:
            self.detect.take(judge)

    def _quota(self, namespace: str) -> Quota:
        """What its keys say, else a share. The common namespace, the only one where there are no keys, has all."""
        quota = self.authority.quota(namespace)
        return share(quota, self.config.limits) if namespace else quota

    async def _take_report(self, peer: Peer, message: Reported) -> None:
        """Credit comes back once it is judged: what waits is bounded by it."""
        try:
            last_steps = await self.history.last_steps(peer.run) if self.assemble.asks(peer.run, message) else None
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

    def _settle(self, key: LayerStep, state: str, by_step: int | None = None) -> None:
        _, layer, role, step = key
        self.receive.acknowledge(self.assemble.settle(key), Ack(state, layer, step, role, by_step=by_step))

    def _give_up(self, snapshot: Snapshot, error: MeasureError) -> None:
        """One matrix cannot be measured here: its trainers hear so, and everybody that it happened."""
        self.counters["dropped_unmeasured"] += 1
        self._fault("measure", f"{error}")
        sessions = self.assemble.settle((*snapshot.key, snapshot.step))
        refusal = Refusal("measure_failed", str(error), snapshot.layer, snapshot.step, snapshot.role)
        self.receive.acknowledge(sessions, refusal)

    def _fault(self, name: str, text: str | None) -> None:
        """`name` is wrong, or (None) no longer: an alert of the daemon's own run, at each change."""
        if (alert := self.faults.follow(name, text)) is not None:
            self.record.alert(alert)

    def _unread(self, text: str) -> None:
        self._fault("history_unread", f"the history cannot be read: {text}")

    def _history_fault(self, error: StoreError | None) -> None:
        self.history.look_anew()
        self.record.fault(error)
        if error is not None and error.begun_anew:
            self._fault("history_moved", str(error))

    def _fault_from_thread(self, name: str, text: str | None) -> None:
        self.crossing.call(self._fault, name, text)
