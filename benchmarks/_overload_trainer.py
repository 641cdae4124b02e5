"""A trainer of benchmarks/overload.py: a forked process that pushes at a pace that is told."""

from __future__ import annotations

import contextlib
import time
from multiprocessing.connection import Connection
from typing import Any

import torch
from _children import CONNECT_SECONDS, FLUSH_SECONDS

from rankd_client import Client

COLLAPSED = "h.0"
ARENA_BYTES = 32 << 20
"""Of one trainer, lent to the daemon."""


def push_steadily(pipe: Connection, url: str, run: str, num_layers: int, size: int, interval: Any) -> None:
    """A trainer. Says "connected"; is told (seconds, when to collapse or None), pushes for so long, each `interval` (a
    shared number of seconds), says (step, time) of each push; and so on until it is told None, when it flushes and says
    what came of it."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(sum(run.encode()))
    weights = {f"h.{i}": torch.randn(size, size, generator=generator) for i in range(num_layers)}
    u, s, v = torch.linalg.svd(weights[COLLAPSED])
    s[size // 2 :] *= 0.05
    client = Client(run, url, max_overhead=None, echo=False, max_memory_bytes=ARENA_BYTES)
    client.push(weights, step=0)
    deadline = time.monotonic() + CONNECT_SECONDS - 5
    while not client.connected and time.monotonic() < deadline:
        time.sleep(0.02)
    pipe.send("connected" if client.connected else "not connected")
    step = 1
    while (told := pipe.recv()) is not None:
        seconds, collapse_after = told
        pushed: list[tuple[int, float]] = []
        began = next_at = time.monotonic()
        while (now := time.monotonic()) < began + seconds:
            if collapse_after is not None and now >= began + collapse_after:
                weights[COLLAPSED], collapse_after = u @ torch.diag(s) @ v, None
            for weight in weights.values():
                weight.mul_(1.00001)
            client.push(weights, step=step)
            pushed.append((step, now))
            step, next_at = step + 1, max(next_at + interval.value, now)
            time.sleep(max(0.0, next_at - time.monotonic()))
        pipe.send(pushed)
    flushed = client.flush(FLUSH_SECONDS)
    outcome = {"num_errors": client.num_errors, "num_dropped": client.stats.num_dropped, "flushed": flushed}
    client.close()
    with contextlib.suppress(BrokenPipeError):
        pipe.send(outcome)
