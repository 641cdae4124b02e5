"""Trainers and subscribers as forked processes: torch is imported once, before, and no client exists yet.

Call `fork` while this process has neither a client, nor a subscription, nor threads of torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import multiprocessing
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

import torch
import zmq

from rankd_client import Client, asubscribe

CONNECT_SECONDS = 120.0
FLUSH_SECONDS = 60.0


class Child:
    """A forked process running `body(connection, *arguments)`, and our end of its pipe."""

    def __init__(self, body: Callable[..., None], *arguments: Any) -> None:
        context = multiprocessing.get_context("fork")
        self.pipe, theirs = context.Pipe()
        self.process: BaseProcess = context.Process(target=_run, args=(body, theirs, self.pipe, *arguments))
        self.process.daemon = True  # does not outlive us
        self.process.start()
        theirs.close()

    def hear(self, seconds: float) -> Any:
        """The next thing that it says. RuntimeError where nothing comes."""
        if not self.pipe.poll(seconds):
            raise RuntimeError(f"a child said nothing in {seconds} s (exit code {self.process.exitcode})")
        try:
            return self.pipe.recv()
        except EOFError:
            raise RuntimeError(f"a child ended with {self.process.exitcode}") from None

    def kill(self) -> None:
        self.process.kill()
        self.end()

    def end(self) -> None:
        """Wait for it, and let go of its pipe."""
        self.process.join()
        self.pipe.close()
        self.process.close()


def _run(body: Callable[..., None], pipe: Connection, others: Connection, *arguments: Any) -> None:
    others.close()  # so that the pipe ends when the parent does
    body(pipe, *arguments)


def train(pipe: Connection, url: str, run: str, num_layers: int, size: int, interval_seconds: float) -> None:
    """Push `num_layers` matrices every `interval_seconds` until the parent says something; then tell it the outcome.

    Says "connected" when a daemon answers.
    """
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(os.getpid())
    weights = {f"layer{i}": torch.randn(size, size, generator=generator) for i in range(num_layers)}
    client = Client(run, url, max_overhead=None, echo=False)
    client.push(weights, step=0)  # a client connects when it has something to say
    deadline = time.monotonic() + CONNECT_SECONDS - 5
    while not client.connected and time.monotonic() < deadline:
        time.sleep(0.02)
    pipe.send("connected" if client.connected else "not connected")
    step, next_at, slowest = 1, time.monotonic(), 0.0
    while not pipe.poll(max(0.0, next_at - time.monotonic())):
        for weight in weights.values():
            weight.mul_(1.0001)
        slowest = max(slowest, client.push(weights, step=step).blocked_seconds)
        step += 1
        next_at = max(next_at + interval_seconds, time.monotonic())
    connected, flushed = client.connected, client.flush(FLUSH_SECONDS)
    outcome = {"num_pushes": step, "num_errors": client.num_errors, "connected": connected, "flushed": flushed}
    client.close()
    with contextlib.suppress(BrokenPipeError):
        pipe.send({**outcome, "slowest_push_seconds": slowest})


def read(pipe: Connection, url: str, num_readers: int, streams: tuple[str, ...]) -> None:
    """`num_readers` subscriptions in one event loop until the parent says something; then it is told, for each item,
    when it was published and how many seconds later it was received, and the number of gaps."""
    asyncio.run(_read(pipe, url, num_readers, streams))


async def _read(pipe: Connection, url: str, num_readers: int, streams: tuple[str, ...]) -> None:
    delays: list[tuple[float, float]] = []
    subscriptions = [asubscribe(url, streams=streams) for _ in range(num_readers)]

    async def follow(items: Any) -> None:
        async for item in items:
            now = time.time()
            delays.append((item["time"], now - item["time"]))

    tasks = [asyncio.create_task(follow(items)) for items in subscriptions]
    pipe.send("connected")
    asked = asyncio.Event()
    asyncio.get_running_loop().add_reader(pipe.fileno(), asked.set)
    await asked.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    with contextlib.suppress(BrokenPipeError):
        pipe.send((delays, sum(len(items.gaps) for items in subscriptions)))


def connect_and_never_read(pipe: Connection, address: str, num_sockets: int) -> None:
    """Raw SUB sockets on the alert address that subscribe to all and take nothing, until the parent says something."""
    context = zmq.Context()
    for _ in range(num_sockets):
        socket = context.socket(zmq.SUB)
        socket.set(zmq.RCVHWM, 1)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.SUBSCRIBE, b"")
        socket.connect(address)
    pipe.send("connected")
    with contextlib.suppress(EOFError):
        pipe.recv()
    context.destroy(linger=0)
