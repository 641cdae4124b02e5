"""The composition root: builds the stages, runs the two loops, shuts down in order."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankd.config import ServeConfig
from rankd.executors import EXECUTORS, choose_device
from rankd.mailbox import Mailbox
from rankd.query import QueryServer
from rankd.records import Snapshot
from rankd.sockets import BindError, Sockets
from rankd.stages.assemble import Assemble
from rankd.stages.detect import Detect
from rankd.stages.measure import Measure
from rankd.stages.publish import Publish
from rankd.stages.receive import Receive
from rankd.stages.record import Record
from rankd.web.server import bind_http, make_server
from rankd_client.wire import Ack, AlertNotice, Refusal, WireError

log = logging.getLogger("rankd.daemon")

LOGGED = ("run", "layer", "step", "rule", "state", "severity")


@dataclass(frozen=True, slots=True)
class Ready:
    """What the daemon bound, once it takes pushes."""

    push: str
    alerts: str
    query: str
    http: str

    def __str__(self) -> str:
        return f"ready push={self.push} alerts={self.alerts} query={self.query} http={self.http}"


class Daemon:
    """Receive ▶ assemble ▶ [mailbox] ▶ measure ▶ detect ▶ record ▶ publish.

    Construction binds every address (BindError, ConfigError or ValueError name what cannot be had) and must happen in
    a running event loop.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.started = time.monotonic()
        stream_id = secrets.token_hex(8)
        self.device = choose_device(config.device)
        self.executor = EXECUTORS[config.executor](self.device)
        self.sockets = Sockets(config)
        self.http_socket = None
        if config.http != "off":
            try:
                self.http_socket = bind_http(config.http, config.http_any_port)
            except OSError as error:
                self.sockets.close(linger_ms=0)
                hint = "give --http HOST:PORT or --http off"
                raise BindError(f"http={config.http} cannot be bound: {error.strerror}; {hint}") from None
        self.record = Record(stream_id, config.limits, time.time, self.counters, config.data)
        self.receive = Receive(
            self.sockets.push, config.limits, stream_id, time.monotonic, self.counters, self.record.firing
        )
        self.assemble = Assemble(config.limits, self.counters)
        self.mailbox = Mailbox(config.limits.max_mailbox_bytes, self.executor.num_slots, self.counters)
        self.measure = Measure(self.executor)
        self.detect = Detect(config.detect)
        self.publish = Publish(self.sockets.alerts, stream_id, time.time, self.counters)
        self.query = QueryServer(self.sockets.query, stream_id, self.record, self.counters)
        self.stop = asyncio.Event()
        self.drained = True
        """False where the daemon stopped before it had measured all that was waiting."""
        if not config.insecure and any(address.startswith("tcp://") for address in self.sockets.addresses.values()):
            log.warning("listening on loopback TCP without keys: every user of this host can push and listen")
        if config.insecure:
            log.warning("insecure: whoever reaches these addresses can push and listen")

    async def intake(self) -> None:
        """Chunks in, whole snapshots into the mailbox. Never waits for analysis."""
        while True:
            peer, chunk = await self.receive.next()
            try:
                assembled = self.assemble.add(peer.run, peer.session, chunk, time.monotonic())
            except WireError as error:
                self.receive.refuse(peer.identity, error, chunk)
                continue
            self.receive.give_credit(peer, chunk)
            if assembled.settled:
                self.receive.acknowledge([peer.session], Ack("recorded", chunk.layer, chunk.step, chunk.role))
            if assembled.snapshot is not None:
                for displaced in self.mailbox.put(assembled.snapshot):
                    self._settle(displaced.snapshot, "superseded", displaced.by_step)

    async def analysis(self) -> None:
        """Snapshots out of the mailbox, as many at once as the executor has slots, in order within a layer."""
        async with asyncio.TaskGroup() as measuring:
            while (snapshot := await self.mailbox.get()) is not None:
                measuring.create_task(self._analyse(snapshot))

    async def _analyse(self, snapshot: Snapshot) -> None:
        measurement = await self.measure(snapshot)
        alerts = self.detect(measurement)
        events = self.record(measurement, alerts)
        self.publish(events)
        for event in events:
            if event.kind == "alert":
                self.receive.notify(event.run, AlertNotice(event.body))
                log.info("alert %s", " ".join(f"{key}={event.body[key]!r}" for key in LOGGED))
        self._settle(snapshot, "recorded")
        self.mailbox.done(snapshot)

    async def housekeeping(self) -> None:
        """Once a heartbeat: say that we live, give up what timed out."""
        while True:
            await asyncio.sleep(self.config.limits.heartbeat_seconds)
            now = time.monotonic()
            self.publish.heartbeat()
            self.receive.heartbeat()
            for (_, layer, role, step), sessions in self.assemble.expire(now):
                self.receive.acknowledge(sessions, Refusal("timed_out", "not all shards came", layer, step, role))
            if (run := self.assemble.idle_run(now, self.receive.runs)) is not None:
                for stage in (self.assemble, self.detect, self.record):
                    stage.forget(run)

    def health(self) -> dict[str, Any]:
        """The body of /healthz."""
        return {
            "status": "stopping" if self.stop.is_set() else "ok",
            "uptime_seconds": round(time.monotonic() - self.started, 3),
            "stream_id": self.record.stream_id,
            "device": str(self.device),
            "num_waiting": len(self.mailbox),
            "waiting_bytes": self.mailbox.num_bytes,
            "assembly_bytes": self.assemble.num_bytes,
            **self.counters,
        }

    async def run(self, announce: Callable[[Ready], None]) -> None:
        """Call `announce` once pushes are taken; serve until `stop` is set or SIGTERM or SIGINT comes; then finish what
        is waiting, within `drain_seconds`."""
        loop = asyncio.get_running_loop()
        for signum in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signum, self.stop.set)
        if self.config.while_stdin:
            loop.add_reader(sys.stdin.fileno(), self._read_stdin)
        server = make_server(self.health)
        try:
            async with asyncio.TaskGroup() as tasks:
                analysis = tasks.create_task(self.analysis())
                intake = tasks.create_task(self.intake())
                side = [self.housekeeping(), self.query.serve(), self.publish.watch_subscriptions()]
                others = [tasks.create_task(task) for task in side]
                if self.http_socket is not None:
                    tasks.create_task(server.serve(sockets=[self.http_socket]))
                announce(self.ready())
                await self.stop.wait()
                await self._drain(intake, analysis)
                for task in others:
                    task.cancel()
                server.should_exit = True
        finally:
            self.executor.close()
            self.record.close()
            self.sockets.close()

    def ready(self) -> Ready:
        http = "off"
        if self.http_socket is not None:
            host, port = self.http_socket.getsockname()[:2]
            http = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        return Ready(**self.sockets.addresses, http=http)

    async def _drain(self, intake: asyncio.Task[None], analysis: asyncio.Task[None]) -> None:
        log.info("stopping num_waiting=%d", len(self.mailbox))
        intake.cancel()
        self.mailbox.close()
        try:
            await asyncio.wait_for(analysis, self.config.limits.drain_seconds)
        except TimeoutError:
            self.drained = False
            log.warning("stopping with num_waiting=%d; their clients keep them", len(self.mailbox))
        self.publish.heartbeat(state="stopping")
        self.receive.goodbye()

    def _read_stdin(self) -> None:
        """Whoever started us holds the other end: when that process is gone, however it ended, so are we."""
        if not os.read(sys.stdin.fileno(), 4096):
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self.stop.set()

    def _settle(self, snapshot: Snapshot, state: str, by_step: int | None = None) -> None:
        sessions = self.assemble.settle(snapshot)
        self.receive.acknowledge(sessions, Ack(state, snapshot.layer, snapshot.step, snapshot.role, by_step=by_step))
