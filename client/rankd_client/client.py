"""The trainer's side: `Client.push` copies weights and returns; everything else happens elsewhere."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from rankd_client.arguments import Steps, seconds_of
from rankd_client.config import Config, read_config
from rankd_client.console import describe, say, warn
from rankd_client.fences import Attachment, check_attached, hooked_of
from rankd_client.receipt import PushReceipt
from rankd_client.shown import take_all
from rankd_client.stats import Stats
from rankd_client.untraced import untraced

if TYPE_CHECKING:
    from rankd_client.pusher import Pusher
    from rankd_client.watch import Adapter

MAX_ALERTS = 1000
"""Alerts kept for alerts(); the oldest go first."""

LOCK_SECONDS = 1.0
"""How long a push waits for one of another thread."""

FLUSH_SECONDS, CLOSE_SECONDS = 5.0, 2.0

Work = Callable[["Pusher", int, float], tuple[PushReceipt, Exception | None]]
"""Called with the step, and the time when the caller came."""


class Client:
    """Ships snapshots of a model's weights to a rankd daemon, and brings its alerts back.

    Args:
        run: name of the run; RANKD_RUN, else one made of script, host, process and time.
        endpoint: URL of the daemon; RANKD_URL, else the user's own `ipc://` directory.
        every_steps: push at the first step at or after each multiple of this; RANKD_EVERY_STEPS, else 1.
        min_interval_seconds: leave at least this long between two pushes.
        max_overhead: share of training time that `push` may block: due pushes are shrunk or skipped to keep it. What
            the thread that sends takes is not in it. None: every due push is whole, as in jobs of several processes.
        max_push_bytes: bytes of one push; where a model has more, layers take turns. A larger layer is never pushed.
        max_memory_bytes: bound of the memory for snapshots; None: 2 × max_push_bytes.
        dtype: what is sent: "bfloat16", "float32", "float16", "float64"; or with a scale per row, half the bytes of
            bfloat16 and coarser readings of low ranks: "int8", "float8_e4m3fn", "float8_e5m2". Never wider than the
            weights are.
        include, exclude, priority: globs of layer names: the only ones to push, those not to, those to push first.
        strict: raise what would only be logged. For tests.
        echo: print each alert on stderr, one line each; RANKD_ECHO=0 turns that off.
        key: path of a key file made by `rankd keys`, for a daemon on TCP that asks for one; RANKD_KEY. Not needed, and
            not read, for ipc.
        adapters: tell what is global of a parameter (its name, its place) where each process has its own numbers for
            layers or experts, or a way to shard of its own: MegatronAdapter, or any Adapter. DTensors, FSDP, ZeRO-3
            and DDP need none.
        source: "param", or "master": of weights that an optimizer keeps a float32 copy of (`attach` says which one, or
            the parameter's own `main_param`), that copy.

    Wrong arguments and a wrong environment raise ValueError here; from then on nothing raises (but `strict`), and
    nothing waits for a daemon. RANKD_MODE=disabled makes every method return at once;
    RANKD_MODE=offline spools to the directory RANKD_SPOOL, within RANKD_SPOOL_BYTES, for `rankd sync`.
    """

    def __init__(
        self,
        run: str | None = None,
        endpoint: str | None = None,
        *,
        every_steps: int | None = None,
        min_interval_seconds: float = 0.0,
        max_overhead: float | None = 0.005,
        max_push_bytes: int = 64 << 20,
        max_memory_bytes: int | None = None,
        dtype: str = "bfloat16",
        include: str | Iterable[str] | None = None,
        exclude: str | Iterable[str] | None = None,
        priority: str | Iterable[str] = (),
        strict: bool = False,
        echo: bool | None = None,
        key: str | os.PathLike[str] | None = None,
        adapters: Iterable[Adapter] = (),
        source: str = "param",
    ) -> None:
        self.config: Config = read_config(
            run=run,
            endpoint=endpoint,
            every_steps=every_steps,
            min_interval_seconds=min_interval_seconds,
            max_overhead=max_overhead,
            max_push_bytes=max_push_bytes,
            max_memory_bytes=max_memory_bytes,
            dtype=dtype,
            include=include,
            exclude=exclude,
            priority=priority,
            strict=strict,
            echo=echo,
            key=key,
            adapters=adapters,
            source=source,
        )
        self.run = self.config.run
        self.num_errors = 0
        self._pid = os.getpid()
        self._off = self.config.mode == "disabled"
        self._lock = threading.Lock()
        self._pushing: int | None = None
        """The thread that has the lock."""
        self._alerts: deque[dict[str, Any]] = deque(maxlen=MAX_ALERTS)
        self._pusher: Pusher | None = None
        if not self._off:
            from rankd_client.pusher import Pusher  # brings ZeroMQ: not for those who have this disabled

            self._pusher = Pusher(self.config, os.urandom(16), self._alerts)
        self._steps, self._last_stats = Steps(), Stats()
        self._is_settled = True
        """What flush() says where there is nothing to wait for."""
        self._attached: dict[int, Attachment] = {}
        """By the model's id."""

    @property
    def connected(self) -> bool:
        """Whether a daemon answers at this moment."""
        return (pusher := self._pusher) is not None and pusher.connected

    @untraced
    def push(self, model: Any, step: int | None = None, also: Mapping[str, Any] | None = None) -> PushReceipt:
        """Copy the weights that are due at `step` and return; they are sent from another thread.

        `model` is a module or a mapping of name -> tensor, one of them a step (of several push one mapping, or have a
        client for each); `step` counts up from the last one, or from 0, if left out.
        `also` has what else is to be watched, under names of its own or of weights: name -> tensor, a feature
        (vectors × dim), or name -> (role, tensor) with the role "feature", "gradient" or "update". At a step that is
        not due it is not looked at; else it goes first. All tensors may be changed as soon as this returns (of those
        on a GPU see `attach`). Never raises, unless `strict`; never waits for a daemon.
        """
        if (attachment := self._attached.get(id(model))) is not None:
            attachment.by_hand()
        return self._take(model, step, also)

    @untraced
    def push_measurements(
        self, measurements: Mapping[str, Mapping[str, Any]], step: int | None = None, role: str = "weight"
    ) -> PushReceipt:
        """Send numbers that you computed, layer -> {metric: number or None}, to detectors, history and alerts.

        `step` is that of the newest `push`, and counts up where there was none, if left out. Metrics of
        docs/features.md are judged; "rows", "cols", "finite" and any other keys of JSON may be there. None is due or
        not, and each step of a layer and role counts once: a second call for it is in the receipt's `skipped`. In jobs
        of several processes process 0 sends. Never raises, unless `strict`; never waits.
        """
        return self._alone(
            step,
            lambda: self._steps.reported(step),
            lambda pusher, number, started: pusher.report(measurements, number, role, started),
        )

    def attach(self, model: Any, optimizer: Any, *, every: int | None = None, step: int = 0) -> Attachment:
        """Let copies from a GPU go on while training does: the next step of `optimizer` (one, or several) waits for
        them, on the device and not on the host. Without, `push` has the training stream wait, which is as safe.

        With `every`, each such step (of several optimizers: of the last) is counted from `step` on, and the model
        pushed after every so many of them, until somebody calls `push` with it. The weights must change in steps of
        these optimizers alone: before anything else changes them, call `fence`. `detach` of what is returned ends it.

        Raises TypeError or ValueError if these are no module and optimizers; from then on nothing raises.
        """
        optimizers = check_attached(model, optimizer, every, step)
        attachment = Attachment(model, optimizers, every, step, self._take)
        pusher = self._pusher
        if self._off or pusher is None:
            return attachment
        if (older := self._attached.pop(id(model), None)) is not None:
            older.detach()
        fence, ids = pusher.fence, (attachment.model_id, attachment.optimizer_ids)
        attachment.hook(fence.before_step, self._guard, lambda: fence.forget(*ids))
        if not fence.watch(model, [*map(hooked_of, optimizers)], pusher.wants):
            say("attach: some weights, perhaps frozen, are not the optimizer's: each push makes the GPU's stream wait")
        pusher.use_optimizers(attachment.optimizers)
        self._attached[id(model)] = attachment
        return attachment

    def fence(self) -> None:
        """Have the current CUDA streams wait, on their devices, for copies that still go on: call it before weights
        change otherwise than in a step of an attached optimizer. Never blocks the host, never raises."""
        if (pusher := self._pusher) is not None:
            self._guard(pusher.fence.now)

    @property
    def stats(self) -> Stats:
        """What pushing costs, how old each layer's newest snapshot is, what was dropped; of a closed client too."""
        pusher = self._pusher
        return self._last_stats if pusher is None else pusher.stats()

    @untraced
    def _guard(self, work: Callable[[], Any]) -> None:
        """In somebody else's training step: nothing raises, and a child process does nothing."""
        if self._off or os.getpid() != self._pid:
            return
        try:
            work()
        except Exception as error:
            self._fault(error, "a hook")

    def _take(self, model: Any, step: int | None = None, also: Any = None) -> PushReceipt:
        """A push, by hand or by a hook."""
        return self._alone(
            step,
            lambda: self._steps.pushed(step),
            lambda pusher, number, started: pusher.push(model, number, started, also),
        )

    def _alone(self, step: int | None, find_step: Callable[[], int], work: Work) -> PushReceipt:
        """What `work` gives, one thread at a time."""
        if self._off or os.getpid() != self._pid:
            return PushReceipt(step)
        started = time.perf_counter()
        try:
            own = self._pushing == threading.get_ident()  # in a signal handler, or a hook of what is being copied
            if own or not self._lock.acquire(timeout=LOCK_SECONDS):
                return PushReceipt(step, skipped={"*": "another push is under way"})
            try:
                self._pushing = threading.get_ident()
                step = find_step()
                if (pusher := self._pusher) is None:  # closed by another thread since
                    return PushReceipt(step)
                receipt, error = work(pusher, step, started)
            finally:
                self._pushing = None
                self._lock.release()
            if error is not None:
                self._fault(error)
            return receipt
        except Exception as error:
            self._fault(error)
            return PushReceipt(step, blocked_seconds=time.perf_counter() - started)

    def alerts(self) -> list[dict[str, Any]]:
        """The alerts of this run that came since the last call, as the alert stream has them. Never blocks."""
        return take_all(self._alerts) if os.getpid() == self._pid else []

    def flush(self, timeout: float | None = FLUSH_SECONDS) -> bool:
        """Wait up to `timeout` seconds (None: 5) until all that was pushed is recorded, superseded or refused; False if
        it was not. Of a closed client: whether it was when that was closed."""
        pusher = self._pusher
        if self._off or os.getpid() != self._pid or pusher is None:
            return self._is_settled
        seconds = self._checked_timeout(timeout, FLUSH_SECONDS)
        try:
            return pusher.flush(seconds)
        except Exception as error:
            self._fault(error, "flush()")
            return False

    def close(self, timeout: float | None = CLOSE_SECONDS) -> None:
        """Send what is pending, for up to `timeout` seconds (None: 2) where a daemon is connected, at once where none
        is; end the thread and give the memory back. One line on stderr says of how many layers no daemon took the
        newest snapshot, if of any. Further calls, and pushes after it, do nothing."""
        if self._off or os.getpid() != self._pid:
            return
        self._off = True
        while self._attached:
            self._attached.popitem()[1].detach()
        pusher, self._pusher = self._pusher, None
        seconds = self._checked_timeout(timeout, CLOSE_SECONDS)
        try:
            if pusher is not None:
                self._is_settled = False  # unless it ends well
                self._is_settled = pusher.close(seconds)
                self._last_stats = pusher.stats()
        except Exception as error:
            self._fault(error, "close()")

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _checked_timeout(self, timeout: Any, default: float) -> float:
        try:
            return seconds_of(timeout, default)
        except ValueError as error:
            self._fault(error, "a timeout")
            return default

    def _fault(self, error: Exception, what: str = "a push") -> None:
        self.num_errors += 1
        if self.config.strict:
            raise error
        if self.num_errors == 1:
            warn(f"{what} failed, training goes on: {describe(error)}")
