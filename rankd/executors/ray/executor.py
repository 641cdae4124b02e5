"""Measuring on a Ray cluster, and here while there is none."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import torch

from rankd.config import RAY_URL, ConfigError, RayConfig, ServeConfig
from rankd.executors.packed import outcome_of
from rankd.executors.ray.cluster import AUTO, LOCAL, NO_ANSWER, answers
from rankd.executors.ray.deaths import Deaths
from rankd.executors.ray.link import JOIN_SECONDS, Link, LinkError, Target
from rankd.executors.solver import CPU, OnChange, Outcome
from rankd.executors.threads import ThreadExecutor, num_threads
from rankd.executors.work import Work
from rankd.plan import MeasureConfig
from rankd.weights import Part, settings_of

log = logging.getLogger("rankd.ray")

SLOTS_PER_WORKER = {False: 4, True: 32}
"""On a core, on a GPU: a call at work, one at hand, and small matrices go several in a call."""

MAX_SLOTS = 256
"""Snapshots handed over at once: each may have 32 MiB before the mailbox counts it as large."""

RETRY_SECONDS = (15.0, 300.0)
"""Until the first new try to join, and between later ones at most; it doubles in between."""


_PLACES = {"": "what is found here, else a private one", AUTO: "the cluster on this host", LOCAL: "a private one"}


@dataclass(slots=True, eq=False)
class _Item:
    number: int
    work: Work
    future: Future[list[Part]]


class RayExecutor:
    """Hands works to a driver process, at most so many bytes at once, and keeps each until its outcome is in. Where the
    cluster is lost, all that it had is measured here on the CPU, and what comes too, until it can be joined again.

    Raises ConfigError where Ray is not installed, or there is no cluster.
    """

    def __init__(
        self,
        target: Target,
        measure: MeasureConfig,
        limits: RayConfig,
        on_fault: OnChange,
        retry_seconds: tuple[float, float] = RETRY_SECONDS,
        count: Callable[[str], None] = lambda name: None,
    ) -> None:
        self._target, self._measure, self._limits = target, measure, limits
        self._on_fault = on_fault
        self._deaths = Deaths(count)
        self._retry_seconds = retry_seconds
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._numbers = itertools.count()
        self._waiting: deque[_Item] = deque()
        self._sent: dict[int, _Item] = {}
        self._num_bytes = 0
        """Of those that are sent."""
        self._link: Link | None = None
        self._joining: Link | None = None
        self._local = ThreadExecutor(CPU, on_fault, settings_of(measure))
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(self._local.close)
            log.info("joining Ray at %s, up to %.0f s", _PLACES.get(target.address, target.address), JOIN_SECONDS)
            try:
                link = self._join(JOIN_SECONDS)
            except LinkError as error:
                raise ConfigError(f"{target.source}: {error}") from None
            cleanup.pop_all()
        self.num_slots = min(MAX_SLOTS, SLOTS_PER_WORKER[link.on_gpu] * link.num_workers)
        log.info("joined address=%s num_workers=%d gpus=%s", link.address, link.num_workers, link.on_gpu)
        self._use(link)

    @property
    def num_workers(self) -> int:
        """The cluster's, as it was joined last; while it is lost, the threads that measure here."""
        link = self._link
        return self._local.num_workers if link is None else link.num_workers

    @property
    def device(self) -> torch.device:
        link = self._link
        return torch.device("cuda", 0) if link is not None and link.on_gpu else CPU

    @property
    def devices(self) -> tuple[torch.device, ...]:
        return (self.device,)

    def submit(self, work: Work) -> Future[list[Part]]:
        item = _Item(next(self._numbers), work, Future())
        with self._changed:
            if self._closed.is_set():
                item.future.cancel()
            elif self._link is None or item.work.num_bytes > self._link.max_bytes:
                self._measure_here(item)
            else:
                self._waiting.append(item)
                self._changed.notify_all()
        return item.future

    def close(self) -> None:
        with self._changed:
            self._closed.set()
            links = [link for link in (self._link, self._joining) if link is not None]
            self._link = self._joining = None
            for item in (*self._waiting, *self._sent.values()):
                item.future.cancel()
            self._waiting.clear()
            self._sent.clear()
            self._changed.notify_all()
        self._local.close()
        for link in links:
            link.close()

    def _join(self, seconds: float) -> Link:
        try:
            link = Link(self._target, self._measure, self._limits)
        except OSError as error:  # no process, or no descriptor, to be had just now
            raise LinkError(f"no driver can be started: {error}") from error
        with self._changed:
            self._joining = link
        try:
            if self._closed.is_set():
                raise LinkError("too late")
            link.join(seconds)
        except BaseException:
            link.close()
            raise
        if link.address != LOCAL:  # a private one instead would be no better than this host's own cores
            self._target = replace(self._target, may_start=False)
        return link

    def _use(self, link: Link) -> bool:
        """False where it is too late."""
        with self._changed:
            if self._closed.is_set():
                return False
            self._link, self._joining = link, None
        for name, target in (("ray-send", self._send), ("ray-receive", self._receive)):
            threading.Thread(target=target, args=(link,), name=name, daemon=True).start()
        return True

    def _send(self, link: Link) -> None:
        try:
            while (item := self._next(link)) is not None:
                link.send(item.number, item.work)
        except LinkError as error:
            self._lose(link, error)

    def _next(self, link: Link) -> _Item | None:
        """The oldest that waits, once there is room for its bytes; None when this link is over."""
        with self._changed:
            while self._link is link:
                if self._waiting and self._num_bytes + self._waiting[0].work.num_bytes <= link.max_bytes:
                    item = self._waiting.popleft()
                    self._sent[item.number] = item
                    self._num_bytes += item.work.num_bytes
                    return item
                self._changed.wait()
        return None

    def _receive(self, link: Link) -> None:
        try:
            while self._link is link:
                told = link.receive()
                if told["kind"] == "outcome":
                    self._settle(link, told["number"], outcome_of(told["packed"]))
                elif told["kind"] == "back":
                    self._take_back(link, told["number"])
                elif told["kind"] == "lost":
                    self._deaths(str(told["text"]))
                elif told["kind"] == "fault":
                    self._on_fault("ray_worker", f"a worker of the Ray cluster lost its GPU: {told['text']}")
        except LinkError as error:
            self._lose(link, error)
        except Exception as error:  # an answer that is none: nothing more is believed
            self._lose(link, LinkError(f"an answer that cannot be read: {error!r}"))

    def _settle(self, link: Link, number: int, outcome: Outcome) -> None:
        if (item := self._is_over(link, number)) is not None:
            _settle(item.future, outcome)

    def _take_back(self, link: Link, number: int) -> None:
        """Too many workers died of it. It has one more chance here, as with any other executor."""
        if (item := self._is_over(link, number)) is not None:
            shape = "×".join(map(str, item.work.shape))
            log.warning("measured here, after several Ray workers died of it: shape=%s", shape)
            self._measure_here(item)

    def _is_over(self, link: Link, number: int) -> _Item | None:
        """What Ray had under that number, and has not any more; None where it is not ours any more."""
        with self._changed:
            if self._link is not link or (item := self._sent.pop(number, None)) is None:
                return None
            self._num_bytes -= item.work.num_bytes
            self._changed.notify_all()
            return item

    def _lose(self, link: Link, error: LinkError) -> None:
        """What it had is measured here, and now and then it is tried again."""
        with self._changed:
            if self._link is not link:
                return
            self._link = None
            orphans = [*self._sent.values(), *self._waiting]
            self._sent.clear()
            self._waiting.clear()
            self._num_bytes = 0
            for item in orphans:
                self._measure_here(item)
            self._changed.notify_all()
        log.error("Ray is lost, measuring goes on here, num_again=%d: %s", len(orphans), error)
        self._on_fault("ray", f"the Ray cluster is lost: {error}")
        threading.Thread(target=self._rejoin, args=(link,), name="ray-rejoin", daemon=True).start()

    def _rejoin(self, lost: Link) -> None:
        lost.close()
        pause, longest = self._retry_seconds
        while not self._closed.wait(pause):
            pause = min(2 * pause, longest)
            try:
                link = self._join(JOIN_SECONDS)
            except LinkError as error:
                if self._closed.is_set():
                    return
                log.warning("Ray cannot be joined: %s", error)
                continue
            if not self._use(link):
                link.close()
                return
            log.info("joined again address=%s num_workers=%d", link.address, link.num_workers)
            self._on_fault("ray", None)
            return

    def _measure_here(self, item: _Item) -> None:
        def settle(future: Future[list[Part]]) -> None:
            if not future.cancelled():
                error = future.exception()
                _settle(item.future, error if isinstance(error, Exception) else future.result())

        self._local.submit(item.work).add_done_callback(settle)


def _settle(future: Future[list[Part]], outcome: Outcome) -> None:
    """Unless nobody wants it any more."""
    if not future.set_running_or_notify_cancel():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def make_ray_executor(
    config: ServeConfig, devices: Sequence[torch.device], on_fault: OnChange, count: Callable[[str], None]
) -> RayExecutor:
    """`devices`: what a private Ray gets, where one is started here. ConfigError where there is no Ray."""
    for module, package in (("ray", "ray"), ("grpc", "grpcio")):
        if importlib.util.find_spec(module) is None:
            raise ConfigError(f"executor={config.executor!r}: expected the package {package}: pip install 'rankd[ray]'")
    gpus = tuple(device.index or 0 for device in devices if device.type == "cuda")
    address = config.executor if config.executor.startswith(RAY_URL) else os.environ.get("RAY_ADDRESS", "")
    source = f"executor={config.executor!r}"
    if address != config.executor and address:
        source += f", RAY_ADDRESS={address!r}"
    if address not in _PLACES and not answers(address.removeprefix(RAY_URL)):  # before a driver takes its seconds
        raise ConfigError(f"{source}: {NO_ANSWER.format(address)}")
    use_gpus = config.device != "cpu"
    target = Target(address, address in ("", LOCAL), num_threads(), gpus, use_gpus, source)
    return RayExecutor(target, config.measure, config.ray, on_fault, count=count)
