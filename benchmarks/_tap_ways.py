"""Ways to watch a training: ours, and those that only copy the weights to the host."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

import torch
from _daemon import Daemon
from _tap_training import Training

from rankd_client import Client

EVERY = 10
"""Steps between two looks: the cadence at which all ways are compared."""

CONNECT_SECONDS = 15.0
"""On a busy host a daemon may have stood still for so long that the client has to connect again."""


class Way:
    """One way of watching. A block of training with it begins, is watched at every `every`-th step, and ends.

    `num_bytes` leave the device each time. What a way makes the host wait for outside of `watch` it adds to
    `elsewhere_seconds`.
    """

    name = "way"
    how = ""
    """Its settings, in words."""
    every = EVERY
    num_bytes = 0
    default_every: int | None = None
    """The cadence that its documentation, or its users' framework, starts with; None: there is none."""

    def __init__(self, training: Training) -> None:
        self.training = training
        self.elsewhere_seconds = 0.0

    def begin(self) -> None:
        pass

    def watch(self, step: int) -> None:
        """Once at that step, after the optimizer's."""

    def before_update(self) -> None:
        """At each step, before the optimizer's."""

    def end(self) -> None:
        pass

    def settle(self) -> None:
        """Wait for what it has begun, and raise what came of it."""

    def close(self) -> None:
        pass


class Ours(Way):
    """`Client.push` to a daemon that measures, on this host. Outside of the blocks the daemon stands still, and the
    optimizer is without our hooks: plain training has nothing of ours beside it."""

    def __init__(self, training: Training, daemon: Daemon, name: str, *, attach: bool = True, **options: Any) -> None:
        super().__init__(training)
        self.name, self._daemon = name, daemon
        self.client = Client(name, daemon.url, echo=False, strict=True, **options)
        if attach:
            self.client.attach(training.model, training.optimizer)
        self.how = ("attach and " if attach else "") + "push" + "".join(f", {key}={options[key]}" for key in options)
        self._set_aside: list[dict[int, Any]] = []
        self._take_hooks()

    def begin(self) -> None:
        for hooks, ours in zip(self._hooks(), self._set_aside, strict=True):
            hooks.update(ours)
        os.kill(self._daemon.pid, signal.SIGCONT)

    def watch(self, step: int) -> None:
        receipt = self.client.push(self.training.model, step)
        self.num_bytes = max(self.num_bytes, receipt.wire_bytes)

    def end(self) -> None:
        os.kill(self._daemon.pid, signal.SIGSTOP)
        self._take_hooks()

    def _hooks(self) -> list[dict[int, Any]]:
        optimizer = self.training.optimizer
        return [optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks]

    def _take_hooks(self) -> None:
        self._set_aside = [dict(hooks) for hooks in self._hooks()]
        for hooks in self._hooks():
            hooks.clear()

    def close(self) -> None:
        """Raises RuntimeError where the daemon got nothing: a push to nobody is no match for the others."""
        os.kill(self._daemon.pid, signal.SIGCONT)
        until = time.monotonic() + CONNECT_SECONDS
        while not (connected := self.client.connected) and time.monotonic() < until:
            time.sleep(0.05)
        self.client.close()
        if not connected:
            raise RuntimeError(f"{self.name}: no daemon at the end")


class OursByDefault(Ours):
    """As it is without a word of configuration: called at every step, it keeps to its budgets by itself."""

    every = 1


class Pinned(Way):
    """The usual recipe: buffers allocated once, copies in the training's own stream, waited for when they are needed
    again."""

    name = "pinned non-blocking copies"
    how = "fp32 weights to preallocated pinned buffers, on the training's stream, synchronised at the next copy"

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self._is_cuda = training.device.type == "cuda"
        self._sources = [parameter.detach() for parameter in training.model.parameters()]
        self._buffers = [torch.empty(s.shape, dtype=s.dtype, pin_memory=self._is_cuda) for s in self._sources]
        self._copied = torch.cuda.Event() if self._is_cuda else None
        self.num_bytes = sum(buffer.numel() * buffer.element_size() for buffer in self._buffers)

    def watch(self, step: int) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        for buffer, source in zip(self._buffers, self._sources, strict=True):
            buffer.copy_(source, non_blocking=True)
        if self._copied is not None:
            self._copied.record()


class Naive(Way):
    name = ".cpu() of every weight"
    how = "fp32 weights, one after the other"

    def watch(self, step: int) -> None:
        copies = [parameter.detach().cpu() for parameter in self.training.model.parameters()]
        self.num_bytes = sum(copy.numel() * copy.element_size() for copy in copies)
