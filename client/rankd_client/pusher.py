"""What a Client needs from its first push on: which layers go, their copies, and the link that sends them."""

from __future__ import annotations

import time
import weakref
from collections import deque
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from types import MappingProxyType
from typing import Any

from rankd_client import copies
from rankd_client.arena import Arena, aligned
from rankd_client.beside import Beside
from rankd_client.budget import Budget
from rankd_client.config import Config
from rankd_client.console import Echo
from rankd_client.copies.copier import Copier
from rankd_client.elsewhere import Elsewhere
from rankd_client.ending import end, tell
from rankd_client.fences import Fence
from rankd_client.measured import report
from rankd_client.onemodel import OneModel
from rankd_client.outbox import Outbox
from rankd_client.outlet import Outlet, make_outlet
from rankd_client.plan import Schedule, process_world
from rankd_client.receipt import Passes, PushReceipt
from rankd_client.shown import take_once
from rankd_client.startline import StartLine
from rankd_client.stats import Meter, Stats
from rankd_client.taken import Taken
from rankd_client.turns import LEFT_TO_FIRST, REPLICA, Turns, mine, not_mine
from rankd_client.watch import Selection, Watched, Watcher

CAPTURING = "a CUDA graph is being captured"


class Pusher:
    """One training process's pushes. Not thread-safe: the Client lets one thread in at a time."""

    def __init__(self, config: Config, session: bytes, alerts: deque[dict[str, Any]]) -> None:
        self._config = config
        self._session = session
        self._alerts = alerts
        self._schedule = Schedule(config.every_steps, config.min_interval_seconds)
        self._budget = Budget(config.max_overhead, time.monotonic())
        self._outbox = Outbox(Arena(config.max_memory_bytes, copies.allocate))
        self._copier = Copier(self._outbox)
        selection = Selection(
            config.dtype, config.include, config.exclude, config.priority, config.source == "master",
            max_decoded_bytes=config.max_push_bytes,
        )  # fmt: skip
        self._watcher = Watcher(selection, config.adapters, on_gone=self._copier.forget)
        self._beside = Beside(selection, config.adapters, config.max_push_bytes)
        self.fence = Fence(self._copier.fence, copies.capturing)
        self._turns = Turns(config.max_push_bytes, config.max_memory_bytes)
        self._meter = Meter()
        self._link: Outlet | None = None
        self._start_line = StartLine(config)
        self._echo = Echo()
        self._set_up_seconds = 0.0
        """Of the push that is under way: what was spent once and for all."""
        self._last_step: int | None = None
        self._last_seconds: float | None = None
        self._elsewhere = Elsewhere()
        self._one_model = OneModel()
        self._copied: Sequence[str] = ()
        """Names of what the newest push took."""
        self._passes = Passes()

    @property
    def connected(self) -> bool:
        return self._link is not None and self._link.connected

    def push(self, model: Any, step: int, started: float, also: Any = None) -> tuple[PushReceipt, Exception | None]:
        """The receipt, and the first fault that a single layer met. `started` is when the caller came, in seconds of
        the performance counter."""
        now = time.monotonic()
        self._start_line.called(step, now)
        self._meter.called(step, now)
        self._schedule.called(step)
        if self._link is not None:
            self._schedule.adopt(self._link.plan)
        is_resting = now < self._budget.resting_until  # as at most steps of most runs: then nothing else is asked
        process_rank, world_size = (0, 1) if is_resting else process_world()
        reason = self._reason_to_pass(step, now, world_size)
        if reason is None and self._elsewhere.holds(model, process_rank, also):
            reason = self._elsewhere.reason
        if reason == CAPTURING:
            self._look_once(model)
        max_bytes = self._affordable_bytes(now, world_size) if reason is None else None
        if max_bytes is None:
            if reason not in ("not due", REPLICA, LEFT_TO_FIRST):
                self._meter.skipped()
            elif reason == "not due" and step == self._last_step:  # in jobs of several processes it would be due
                self._one_model.not_due(model, step)
            return self._passes.receipt(step, reason or "budget"), None
        self._set_up_seconds, wire_bytes, self._copied = 0.0, 0, ()
        try:
            with self._outbox.right_of_way:
                receipt, error = self._push(model, also, step, max_bytes, process_rank, world_size)
            wire_bytes = receipt.wire_bytes
            self._last_step, self._last_seconds = step, now
            self._one_model.pushed(model)
        finally:  # whatever came of it, the training thread has waited
            blocked_seconds = time.perf_counter() - started
            lasting_seconds = blocked_seconds - self._set_up_seconds
            self._budget.spend(lasting_seconds, wire_bytes)
            self._meter.pushed(step, now, lasting_seconds, wire_bytes, self._copied)
        self._start_line.pushed(step, now, lasting_seconds, wire_bytes)
        return replace(receipt, blocked_seconds=blocked_seconds), error

    def wants(self, name: str) -> bool:
        """Whether a layer called so is pushed."""
        return not self._watcher.selection.refuses(name)

    def use_optimizers(self, optimizers: tuple[weakref.ref[Any], ...]) -> None:
        """They may keep float32 copies of weights."""
        selection = self._watcher.selection
        known = [known for known in selection.optimizers if known() is not None and known not in optimizers]
        self._watcher.selection = replace(selection, optimizers=(*known, *optimizers))

    def stats(self) -> Stats:
        """On any thread."""
        link, outbox = self._link, self._outbox
        return self._meter.stats(
            max_overhead=self._config.max_overhead,
            every_steps=self._schedule.interval_at(self._meter.step),
            device_bytes=self._copier.device_bytes,
            memory_bytes=outbox.arena.num_bytes,
            num_replaced=outbox.num_replaced,
            num_dropped=outbox.num_dropped + outbox.reports.num_dropped + (link.num_dropped if link else 0),
            num_masters=self._turns.num_masters,
            path=link.path if link else "",
        )

    def report(self, measurements: Any, step: int, role: Any, started: float) -> tuple[PushReceipt, Exception | None]:
        """Numbers that the trainer computed. In jobs of several processes those of process 0."""
        reports, (process_rank, world_size) = self._outbox.reports, process_world()
        if process_rank:
            return PushReceipt(step, skipped={"*": REPLICA}), None
        num_dropped = reports.num_dropped
        refused = self._link.refused if self._link is not None else {}
        num_queued, skipped = report(reports, measurements, step, role, refused)
        if num_queued:
            self._connect(process_rank, world_size).wake()
        receipt = PushReceipt(
            step,
            num_queued,
            num_dropped=reports.num_dropped - num_dropped,
            skipped=MappingProxyType(skipped),
            blocked_seconds=time.perf_counter() - started,
        )
        return receipt, None

    def flush(self, timeout_seconds: float) -> bool:
        """True once everything queued is recorded or superseded, False after `timeout_seconds`."""
        return self._outbox.wait_settled(timeout_seconds, self._link.wake if self._link is not None else lambda: None)

    def close(self, timeout_seconds: float) -> bool:
        """Whether everything queued is recorded or superseded then."""
        self._start_line.closed()
        left = end(self._link, self._outbox, timeout_seconds) if self._link is not None else (0, 0)
        self._copier.close()
        self._echo.close()
        if self._config.mode == "online":  # else the spool has said what is there
            tell(*left, self._outbox.num_dropped)
        return self._outbox.settled

    def _reason_to_pass(self, step: int, now: float, world_size: int) -> str | None:
        since_last = None if self._last_seconds is None else now - self._last_seconds
        if not self._schedule.due(step, self._last_step, world_size) or self._schedule.too_soon(since_last, world_size):
            return "not due"
        if now < self._budget.resting_until:
            return "budget"
        return CAPTURING if copies.capturing() else None

    def _affordable_bytes(self, now: float, world_size: int) -> int | None:
        """Bound of a due push; None: skip it. Time is no common ground for several processes."""
        if world_size > 1:
            return self._config.max_push_bytes
        affordable = self._budget.affordable_bytes(self._turns.whole_bytes, self._turns.least_bytes, now)
        return self._config.max_push_bytes if affordable == self._turns.whole_bytes else affordable

    def _look_once(self, model: Any) -> None:
        """For the names that a receipt needs, where no push has found them out; not again where that fails."""
        if self._turns.names is None:
            self._turns.names = ()
            self._remember(self._watcher.look(model)[0])

    def _push(
        self, model: Any, also: Any, step: int, max_bytes: int, process_rank: int, world_size: int
    ) -> tuple[PushReceipt, Exception | None]:
        """A due push, but for its time."""
        num_replaced, num_dropped = self._outbox.num_replaced, self._outbox.num_dropped
        again = self._watcher.is_same(model)
        taken = self._repeat(model, step, max_bytes) if again and also is None and world_size == 1 else None
        if taken is None:
            taken = self._take(model, also, step, max_bytes, process_rank, world_size, again)
        self._copied = taken.names
        if self._link is not None:
            self._link.wake()
        num_replaced, num_dropped = self._outbox.num_replaced - num_replaced, self._outbox.num_dropped - num_dropped
        return taken.receipt(step, num_replaced, num_dropped, self._copier.device_bytes), taken.error

    def _repeat(self, model: Any, step: int, max_bytes: int) -> Taken | None:
        """All of a model that is the same goes as it went last; None: it has to be looked at. What is not touched here
        does not have to come back into the caches while the training waits."""
        whole, link = self._watcher.kept, self._link
        if whole is None or link is None or link.refused or not self._turns.all_fit(max_bytes):
            return None
        skipped: dict[str, str] = {}
        try:
            copied, error = self._copier.copy(whole.items, step, skipped, again=True)
        finally:  # after Ctrl-C, too, copies may go on
            self.fence.pushed(model)
        is_whole = len(copied) == len(whole.items)
        taken = whole if is_whole else Taken.of(copied, {**whole.skipped, **skipped}, error)
        self._turns.pushed(taken.names)
        if not is_whole:  # whose turn it is has changed
            self._remember(list(whole.items))
        return taken

    def _take(
        self, model: Any, also: Any, step: int, max_bytes: int, process_rank: int, world_size: int, again: bool
    ) -> Taken:
        """What is to go of a model, and beside it, is found and copied."""
        with nullcontext() if again and also is None else copies.plain_torch():
            watched, skipped = self._watcher.look(model, again)
            beside = self._beside.choose(also, skipped, max_bytes, alike=world_size > 1)
            self._start_line.watching([*watched, *self._beside.found], skipped)
            if world_size == 1:  # else it has a bound of its own: what goes of the model is chosen alike everywhere
                max_bytes -= sum(item.num_bytes for item in beside)
            refused = self._link.refused if self._link is not None else {}
            turn = step // self._schedule.interval_at(step) if world_size > 1 else None
            chosen = self._turns.choose(watched, skipped, max_bytes, turn=turn, again=again, refused=refused)
            chosen = [*beside, *chosen]
            if refused or world_size > 1 or not all(item.num_bytes for item in chosen):
                chosen = mine(chosen, skipped, process_rank, refused)
            if chosen and not (again and self._link is not None and not beside):
                self._set_up([*watched, *self._beside.found], process_rank, world_size)
            try:
                copied, error = self._copier.copy(chosen, step, skipped, again and not beside)
            finally:  # after Ctrl-C, too, copies may go on
                self.fence.pushed(model)
                if beside or any(item.decode is not None for item in chosen):  # who knows when it changes next
                    self.fence.now()
        taken = Taken.of(tuple(copied), skipped, error)
        self._turns.pushed(taken.names)
        self._elsewhere.looked(model, process_rank, also, (*watched, *self._beside.found))
        self._remember(watched)
        self._beside.pushed(copied)
        is_whole = also is None and len(taken.items) == len(watched) and taken.repeatable
        self._watcher.keep(taken if is_whole else None)
        return taken

    def _set_up(self, watched: list[Watched], process_rank: int, world_size: int) -> None:
        """Memory for this model, and the link. Adds to _set_up_seconds what no later push will take."""
        ours = [item for item in watched if world_size == 1 or not_mine(item, process_rank) is None]
        sizes = [aligned(item.num_bytes) for item in ours if item.num_bytes <= self._config.max_push_bytes]
        if any(item.is_cuda for item in watched):
            self._outbox.arena.allocate = partial(copies.allocate, pinned=True)
        wanted_bytes = 2 * min(sum(sizes), self._config.max_push_bytes)
        started = time.perf_counter()
        self._outbox.grow(wanted_bytes, max(sizes, default=0))
        self._copier.prepare(watched)
        self._connect(process_rank, world_size)
        self._set_up_seconds += time.perf_counter() - started

    def _connect(self, process_rank: int, world_size: int) -> Outlet:
        """The link, started when it is first needed."""
        if self._link is None:
            on_alert = take_once(self._alerts, self._echo if self._config.echo else None)
            link = make_outlet(self._config, self._session, process_rank, world_size, self._outbox, on_alert)
            link.tell = partial(_tell, weakref.ref(self))
            link.start()
            weakref.finalize(self, link.stop).atexit = False
            self._link = link
        return self._link

    def _remember(self, watched: list[Watched]) -> None:
        """What the cheap ways through push() need of the model."""
        again, budget = self._watcher.again, self._config.max_overhead is not None
        if self._turns.remember(watched, self._beside.found, again=again, budget=budget):
            self._passes.watching(self._turns.names or ())
            self._meter.watching(self._turns.names or ())


def _tell(pusher: weakref.ref[Pusher]) -> dict[str, Any]:
    """For a heartbeat. The link must not keep the pusher alive."""
    alive = pusher()
    return {} if alive is None else alive.stats().summary()
