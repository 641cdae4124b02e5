"""The composition root: every part of the daemon, built and connected. Nothing is at work yet."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rankd.answers import Answers
from rankd.auth import Authority, Keyring
from rankd.capacity import Capacity
from rankd.config import ServeConfig
from rankd.crossing import Crossing
from rankd.current import Current
from rankd.executors import executor_of, make_executor, settings_of
from rankd.faults import Faults
from rankd.health import Health
from rankd.history import History
from rankd.jobs import Jobs
from rankd.lent import ArenaListener, Lenders
from rankd.mailbox import Mailbox
from rankd.plan import Planner
from rankd.presence import Presence
from rankd.query import QueryServer
from rankd.quota import Quota, share
from rankd.sockets import Sockets
from rankd.stages.assemble import Assemble
from rankd.stages.detect import Detect
from rankd.stages.measure import Measure
from rankd.stages.publish import Publish
from rankd.stages.receive import Receive
from rankd.stages.record import Record
from rankd.stages.reports import Reports
from rankd.web.listener import HttpListener


class Composition:
    """In the order in which they need one another. `stop` is set when the daemon is to end; what is to be closed then,
    the last first, is put on `cleanup`, also where a later part cannot be had."""

    def __init__(self, config: ServeConfig, stop: asyncio.Event, cleanup: contextlib.ExitStack) -> None:
        self.config = config
        self.counters: Counter[str] = Counter()
        self.crossing = Crossing()
        self._build_memory(cleanup)
        self._build_ends(cleanup)
        self._build_way_in(cleanup)
        self._build_way_out()
        self._build_answers(stop, cleanup)

    def _build_memory(self, cleanup: contextlib.ExitStack) -> None:
        """Who may do what, what is on disk, what is wrong."""
        config = self.config
        keyring = Keyring(config.keys) if config.asks_for_keys and config.keys is not None else None
        self.authority = Authority(keyring)
        self.presence = Presence(config)
        cleanup.callback(self.presence.end)
        self.history = History(config.data, config.history, self.counters, self.authority.disk_quotas, self._unread)
        cleanup.callback(self.history.close)
        self.current = Current(self.history.streams, config.limits, self.counters)
        # An origin of its own: the stream outlives us, and our counts begin anew.
        self.faults = Faults(secrets.token_hex(8), time.time, time.monotonic)

    def _build_ends(self, cleanup: contextlib.ExitStack) -> None:
        """What the daemon computes with, and where it listens."""
        config = self.config
        self.executor = make_executor(config, self._fault_from_thread, self._count_from_thread)
        cleanup.callback(self.executor.close)
        self.sockets = Sockets(config, self.authority, self.counters, self._fault_from_thread)
        cleanup.callback(self.sockets.close)

    def _build_way_in(self, cleanup: contextlib.ExitStack) -> None:
        """From trainers into the mailbox."""
        limits, counters = self.config.limits, self.counters
        self.jobs = Jobs(limits.heartbeat_seconds, limits.trainer_grace_seconds, secrets.token_hex(8))
        self.receive = Receive(
            self.sockets.push, limits, self.history.streams, time.monotonic, counters, self.current.firing,
            self.sockets.doors["push"], self.jobs.trainers, self.jobs.pacing.plan, self._build_lenders(cleanup),
        )  # fmt: skip
        self.assemble = Assemble(limits, counters, self._quota)
        self.reports = Reports(counters, time.time)
        num_slots, num_workers, runs = self.executor.num_slots, self.executor.num_workers, self.receive.runs
        self.mailbox = Mailbox(
            limits.max_mailbox_bytes, num_slots, counters, self._quota, runs, num_workers=num_workers
        )

    def _build_lenders(self, cleanup: contextlib.ExitStack) -> Lenders:
        """Clients on this host whose memory is read."""
        bound, limits = self.sockets.arena, self.config.limits
        lenders = Lenders(limits, self.counters, "" if bound is None else Path(bound.getsockname()).name)
        if bound is not None:
            cleanup.callback(ArenaListener(bound, lenders, limits, self.counters).close)
        return lenders

    def _build_way_out(self) -> None:
        """From the mailbox to subscribers."""
        config, streams, counters = self.config, self.history.streams, self.counters
        self.gauges = gauges = self._make_gauges()
        num_workers, max_layers = lambda: self.executor.num_workers, config.limits.max_layers
        self.planner = Planner(config.measure, num_workers, gauges["device"], gauges["lag_seconds"], max_layers)
        self.measure = Measure(self.executor, time.time, self.planner, counters, settings_of(config.measure))
        self.detect = Detect(config.detect)
        on_fault, patience_seconds = partial(self.fault, "history"), config.history.patience_seconds
        self.record = Record(streams, self.current, counters, self.history.writer, patience_seconds, on_fault=on_fault)
        self.publish = Publish(self.sockets.alerts, streams, time.time, counters, self.sockets.doors["alerts"])

    def _build_answers(self, stop: asyncio.Event, cleanup: contextlib.ExitStack) -> None:
        """For those who ask."""
        plan, summary, processes = self.planner.describe, self.jobs.summary, self.jobs.trainers.describe
        capacity = Capacity(self.mailbox, self.planner, self.gauges["device"], executor_of(self.config)).describe
        answers = Answers(self.current, self.counters, self.history.reading, plan, summary, capacity)
        self.query = QueryServer(self.sockets.query, answers, self.counters, self.sockets.doors["query"])
        self.health = Health(stop, self.presence, self.faults, self.gauges, self.counters, processes, capacity)
        self.http = HttpListener(self.config, self.authority.http_token, self.health, self.counters)
        cleanup.callback(self.http.close)

    def _make_gauges(self) -> dict[str, Callable[[], Any]]:
        return {
            "stream_id": lambda: self.history.streams.stream_id,
            "device": lambda: ",".join(dict.fromkeys(map(str, self.executor.devices))),
            "num_waiting": lambda: len(self.mailbox),
            "waiting_bytes": lambda: self.mailbox.num_bytes,
            "assembly_bytes": lambda: self.assemble.num_bytes,
            "num_unwritten": lambda: self.record.num_pending,
            "lag_seconds": lambda: round(self.mailbox.lag_seconds, 3),
            "plan": lambda: self.planner.describe(),
            "trainers": lambda: self.jobs.summary(),
        }

    def fault(self, name: str, text: str | None) -> None:
        """`name` is wrong, or (None) no longer: an alert of the daemon's own run, at each change."""
        if (alert := self.faults.follow(name, text)) is not None:
            self.record.alert(alert)

    def _fault_from_thread(self, name: str, text: str | None) -> None:
        self.crossing.call(self.fault, name, text)

    def _count_from_thread(self, name: str) -> None:
        self.crossing.call(self.counters.update, (name,))

    def _unread(self, text: str) -> None:
        self.fault("history_unread", f"the history cannot be read: {text}")

    def _quota(self, namespace: str) -> Quota:
        """What its keys say, else a share. The common namespace, the only one where there are no keys, has all."""
        quota = self.authority.quota(namespace)
        return share(quota, self.config.limits) if namespace else quota
