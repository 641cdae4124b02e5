"""Measuring on GPUs: a thread each, which takes what waits in batches, and one for what no GPU measures. Here, or in a
process each (apart/)."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import torch

from rankd.engine import WarmStarts
from rankd.executors.scheduling import Need, room_for, take, take_for_cpu
from rankd.executors.solver import CPU, MeasureError, NotHereError, OnChange, Outcome, Solver
from rankd.executors.threads import prepare_worker
from rankd.executors.work import Work
from rankd.executors.workers import Workers
from rankd.plan.costs import Costs, Size
from rankd.records import Tier
from rankd.weights import Part, Settings

SLOTS_PER_DEVICE = {"cuda": 32, "cpu": 2}
"""Snapshots handed over at once. With as many under way as wait, a GPU's batches are of 16; a CPU gains little by them,
and what waits here has left the mailbox, where the newest wins and time is shared."""

LOOK_AGAIN_SECONDS = 1.0
"""What waits for room on a device may have it without anybody being told: memory is others' too."""


@dataclass(slots=True)
class _Item:
    work: Work
    future: Future[list[Part]]
    size: Size
    need: Need
    is_running: bool = False


class DeviceSolver(Protocol):
    """What measures on a device, as Solver does; `num_threads` may be at it, so that one prepares what is next."""

    num_threads: int
    is_lost: bool

    def begin(self) -> bool:
        """On each of the threads, first and after a loss: waits until the device can be used. False when it is over."""

    def try_all(self, tasks: Sequence[Work]) -> list[Outcome]: ...

    def free_bytes(self) -> float: ...

    def close(self) -> None: ...


MakeSolver = Callable[[torch.device, OnChange], DeviceSolver]


@dataclass(slots=True, eq=False)
class _Lane:
    """A device's thread, or its threads: what they know of it."""

    place: int
    device: torch.device
    solver: DeviceSolver
    free_bytes: float
    """When it was last about to take something."""
    done_at: float = 0.0
    """When its last batch was done: what came next did not keep the device before."""
    warmed: set[Tier] = field(default_factory=set)
    """Tiers that it has measured in: the first time loads libraries."""


class BatchExecutor:
    """Each device's thread takes what `rankd.executors.scheduling` gives it; another one the CPU's share, which is what
    no device measures: for want of memory, because no method converged on it, or because all of them are lost.

    What a device was at when it was lost goes to the others, once. What spoils a CUDA context (an assertion in a
    kernel, say) spoils those of all GPUs in the process: they fail one after the other, where they are of one.
    """

    def __init__(
        self,
        devices: Sequence[torch.device],
        on_fault: OnChange,
        settings: Settings,
        make: MakeSolver | None = None,
        make_rest: MakeSolver | None = None,
        costs: Costs | None = None,
    ) -> None:
        """`make`, `make_rest`: a device's solver, and the CPU's for the rest; if left out, those of this process.
        `costs`: to be learned here, where others ask them too."""
        self._settings, self._on_fault = settings, on_fault
        self._kind = devices[0].type
        self._costs = Costs() if costs is None else costs
        self.num_slots = SLOTS_PER_DEVICE[self._kind] * len(devices)
        here = partial(Solver, settings=settings, warm=WarmStarts())
        solvers = [(make or here)(device, self._tell) for device in devices]
        self._lanes = [_Lane(i, *of, math.inf) for i, of in enumerate(zip(devices, solvers, strict=True))]
        self._rest = (make_rest or here)(CPU, on_fault)
        self._waiting: list[_Item] = []
        self._turn = 0
        lock = threading.Lock()
        self._changed, self._changed_for_cpu = threading.Condition(lock), threading.Condition(lock)
        self._workers = Workers(self.close)
        for lane in self._lanes:
            for _ in range(lane.solver.num_threads):
                self._workers.start(f"measure-{lane.device}", self._run, lane)
        self._workers.start("measure-rest", self._run_rest)

    @property
    def device(self) -> torch.device:
        return self.devices[0]

    @property
    def devices(self) -> tuple[torch.device, ...]:
        """Those left, or the CPU."""
        return tuple(lane.device for lane in self._lanes if not lane.solver.is_lost) or (CPU,)

    @property
    def num_workers(self) -> int:
        return len(self.devices)

    def submit(self, work: Work) -> Future[list[Part]]:
        future: Future[list[Part]] = Future()
        with self._changed:
            if self._workers.is_closed:
                future.cancel()
                return future
            self._waiting.append(self._item(work, future))
            (self._changed_for_cpu if self._are_all_lost() else self._changed).notify_all()
        return future

    def close(self) -> None:
        with self._changed:
            self._workers.is_closed = True
            for item in self._waiting:
                _drop(item)
            self._waiting.clear()
            self._wake_all()
        for lane in self._lanes:
            lane.solver.close()
        self._rest.close()

    def _are_all_lost(self) -> bool:
        return all(lane.solver.is_lost for lane in self._lanes)

    def _wake_all(self) -> None:
        self._changed.notify_all()
        self._changed_for_cpu.notify_all()

    def _item(self, work: Work, future: Future[list[Part]]) -> _Item:
        of, tier = work.snapshot, work.tier
        size = work.size(self._settings)
        seconds = self._costs.predict(self._kind, tier, size)
        num_bytes = work.num_bytes
        kind = (tier, of.shape, of.wire_dtype)
        need = Need(kind, tier, seconds, num_bytes, room_for(size.rows, size.cols, tier, num_bytes), self._turn + 1)
        return _Item(work, future, size, need)

    def _tell(self, fault: str, text: str | None) -> None:
        """On a thread of a device that is lost, or (None) there again: who takes what is another matter now."""
        with self._changed:
            self._wake_all()
        lost = [str(lane.device) for lane in self._lanes if lane.solver.is_lost]
        if text is None and lost:
            text = f"{f'{len(lost)} of its processes' if self._is_on_cpu else ', '.join(lost)} failed before"
        goes_on = "" if text is None else f"{text}; measuring goes on {self._where(len(self._lanes) - len(lost))}"
        self._on_fault(fault, goes_on or None)

    @property
    def _is_on_cpu(self) -> bool:
        """Then the lanes are processes, which have no device of their own."""
        return self._kind == "cpu"

    def _where(self, num_left: int) -> str:
        if not self._is_on_cpu:
            return f"on {','.join(map(str, self.devices))}"
        if not num_left:
            return "in one that takes its place"
        return f"in the {num_left} others" if num_left > 1 else "in the other one"

    def _run(self, lane: _Lane) -> None:
        prepare_worker()
        while not self._workers.is_closed and lane.solver.begin():
            while (batch := self._next(lane)) is not None:
                if batch:
                    began = time.perf_counter()
                    outcomes = _measure(lane.solver.try_all, batch)
                    self._settle(lane, batch, outcomes, began)

    def _run_rest(self) -> None:
        prepare_worker()
        while (batch := self._next(None)) is not None:
            if batch and self._rest.begin():
                _finish(batch, [_given_up(outcome) for outcome in _measure(self._rest.try_all, batch)])
            else:
                for item in batch:
                    _drop(item)

    def _next(self, lane: _Lane | None) -> list[_Item] | None:
        """What a device's thread, or that of the CPU, is to measure. None when it is over, for all or for this device.
        Empty where it was cancelled."""
        while True:
            free_bytes = math.inf if lane is None else lane.solver.free_bytes()
            with self._changed:
                if self._workers.is_closed or (lane is not None and lane.solver.is_lost):
                    return None
                if lane is not None:
                    lane.free_bytes = free_bytes
                if places := self._choose(lane):
                    chosen = [self._waiting[place] for place in places]
                    left = set(places)
                    self._waiting = [item for place, item in enumerate(self._waiting) if place not in left]
                    return [item for item in chosen if _begins(item)]
                changed = self._changed_for_cpu if lane is None else self._changed
                changed.wait(LOOK_AGAIN_SECONDS if self._waiting else None)
                if self._workers.is_closed:  # perhaps the interpreter ends: nothing more is asked of CUDA
                    return None

    def _choose(self, lane: _Lane | None) -> list[int]:
        needs = [item.need for item in self._waiting]
        self._turn = max(self._turn, min((need.turn for need in needs), default=0))
        free = {each.place: each.free_bytes for each in self._lanes if not each.solver.is_lost}
        return take_for_cpu(needs, free) if lane is None else take(needs, lane.place, free)

    def _settle(self, lane: _Lane, batch: list[_Item], outcomes: list[Outcome], began: float) -> None:
        """Tells what came of a batch, and puts back what the device has not measured."""
        now = time.perf_counter()
        back = [(item, out) for item, out in zip(batch, outcomes, strict=True) if isinstance(out, NotHereError)]
        with self._changed:
            for item, outcome in back:
                item.need = _after(item.need, outcome, lane.place)
                if self._workers.is_closed:
                    _drop(item)
            if not self._workers.is_closed:
                self._waiting[:0] = [item for item, _ in back]
            if not back:
                self._learn(lane, batch[0], (now - max(began, lane.done_at)) / len(batch))
            lane.done_at = now
            if back:
                self._wake_all()
        done = [(item, out) for item, out in zip(batch, outcomes, strict=True) if not isinstance(out, NotHereError)]
        _finish([item for item, _ in done], [outcome for _, outcome in done])

    def _learn(self, lane: _Lane, item: _Item, seconds: float) -> None:
        if item.work.tier in lane.warmed:
            self._costs.learn(self._kind, item.work.tier, item.size, seconds)
        lane.warmed.add(item.work.tier)


def _measure(measure: Callable[[Sequence[Work]], list[Outcome]], batch: list[_Item]) -> list[Outcome]:
    try:
        return measure([item.work for item in batch])
    except BaseException as error:  # ours: whoever waits for it has to hear
        return [error if isinstance(error, Exception) else RuntimeError(repr(error))] * len(batch)


def _after(need: Need, outcome: NotHereError, place: int) -> Need:
    """What is known of it now that a device has not measured it."""
    if outcome.reason == "memory":
        return replace(need, tried=need.tried | {place})
    if outcome.reason in ("lost", "gone"):
        return replace(need, num_lost=need.num_lost + (outcome.reason == "lost"))
    return replace(need, off_devices=True)


def _given_up(outcome: Outcome) -> Outcome:
    """After whoever measures the rest there is nobody."""
    if not isinstance(outcome, NotHereError):
        return outcome
    return MeasureError("the process that measured it ended, as those of the devices may have done at it before")


def _begins(item: _Item) -> bool:
    """False where it was cancelled; it may have begun before, on another device."""
    item.is_running = item.is_running or item.future.set_running_or_notify_cancel()
    return item.is_running


def _finish(batch: list[_Item], outcomes: list[Outcome]) -> None:
    for item, outcome in zip(batch, outcomes, strict=True):
        if isinstance(outcome, Exception):
            item.future.set_exception(outcome)
        else:
            item.future.set_result(outcome)


def _drop(item: _Item) -> None:
    if not item.future.cancel():  # it has begun, on a device that did not measure it
        item.future.set_exception(CancelledError())
