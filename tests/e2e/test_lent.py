"""The same-host path with real trainers and daemons, which die, stand still and are replaced: what a daemon read is
whole, and nothing of it stays mapped."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch

from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60.0
SIZE = 512

TRAINER = """
import os, sys, torch
from rankd_client import Client
model = {"w": torch.ones(512, 512)}
client = Client("killed", sys.argv[1], max_overhead=None)
step = 0
while client.stats.path != "memfd":
    client.push(model, step=step)
    assert client.flush(60)
    step += 1
if sys.argv[2] == "fork" and os.fork() == 0:  # as a data loader's worker, which goes on
    os.write(1, b"worker %d\\n" % os.getpid())
    sys.stdin.read()
    os._exit(0)
os.write(1, b"lends\\n")  # in one piece, beside the worker's
sys.stdin.read()
"""


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.01)


def num_mapped(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("memfd:rankd-arena")


def norm_of(step: int) -> float:
    """Of the weights at a step: exact in bfloat16, and of no mixture of two steps."""
    return float(SIZE * 2 ** (step % 16))


def weights_at(step: int) -> torch.Tensor:
    return torch.full((SIZE, SIZE), 2.0 ** (step % 16))


def push_until_lent(client: Client, weight: torch.Tensor, start: int) -> int:
    """Push until snapshots go by memory; the next step."""
    step = start
    deadline = time.monotonic() + WAIT_SECONDS
    while client.stats.path != "memfd":
        assert time.monotonic() < deadline, "nothing is lent"
        weight.copy_(weights_at(step))
        client.push({"w": weight}, step=step)
        client.flush(1.0)
        step += 1
    return step


def rows_from(items: Iterator[dict[str, Any]], last_step: int) -> list[dict[str, Any]]:
    rows = [next(items)]
    while rows[-1]["step"] < last_step:
        rows.append(next(items))
    return rows


def test_what_is_lent_is_measured_like_what_is_sent(serve: Any) -> None:
    served = serve()
    weight = torch.empty(SIZE, SIZE)
    with (
        subscribe(served.url, streams=("measurement",), timeout=WAIT_SECONDS) as items,
        Client("lent", served.url, max_overhead=None) as client,
    ):
        step = push_until_lent(client, weight, 0)
        assert num_mapped(served.process.pid) == 1
        for later in range(step, step + 20):
            weight.copy_(weights_at(later))
            client.push({"w": weight}, step=later)  # overwritten at once by the next
        assert client.flush(WAIT_SECONDS)
        rows = rows_from(items, step + 19)
    assert all(row["frobenius_norm"] == pytest.approx(norm_of(row["step"]), rel=1e-6) for row in rows)
    wait_until(lambda: num_mapped(served.process.pid) == 0)
    assert "lent peer=" in served.log.read_text()


def test_a_daemon_that_stood_still_takes_nothing_for_whole_that_is_not(serve: Any) -> None:
    """It comes back to loans that ended while it was away, in memory that was written over many times since."""
    served = serve()
    weight = torch.empty(SIZE, SIZE)
    with (
        subscribe(served.url, streams=("measurement",), timeout=WAIT_SECONDS) as items,
        Client("still", served.url, max_overhead=None, max_push_bytes=2 * SIZE * SIZE) as client,
    ):
        step = push_until_lent(client, weight, 0)
        served.process.send_signal(signal.SIGSTOP)
        try:
            deadline = time.monotonic() + WAIT_SECONDS
            while client.stats.path == "memfd" and time.monotonic() < deadline:  # until its silence is noticed
                weight.copy_(weights_at(step))
                client.push({"w": weight}, step=step)
                step += 1
                time.sleep(0.01)
            for _ in range(10):
                weight.copy_(weights_at(step))
                client.push({"w": weight}, step=step)
                step += 1
        finally:
            served.process.send_signal(signal.SIGCONT)
        step = push_until_lent(client, weight, step)
        weight.copy_(weights_at(step))
        client.push({"w": weight}, step=step)
        assert client.flush(WAIT_SECONDS)
        rows = rows_from(items, step)
    assert all(row["frobenius_norm"] == pytest.approx(norm_of(row["step"]), rel=1e-6) for row in rows)


def test_a_killed_daemons_successor_is_lent_the_same_memory(serve: Any) -> None:
    weight = torch.empty(SIZE, SIZE)
    first = serve()
    with Client("replaced", first.url, max_overhead=None) as client:
        step = push_until_lent(client, weight, 0)
        first.process.kill()
        first.process.wait(WAIT_SECONDS)
        wait_until(lambda: client.stats.path == "zeromq")
        weight.copy_(weights_at(step))
        client.push({"w": weight}, step=step)
        second = serve()
        with subscribe(second.url, streams=("measurement",), timeout=WAIT_SECONDS) as items:
            step = push_until_lent(client, weight, step + 1)
            weight.copy_(weights_at(step))
            client.push({"w": weight}, step=step)
            assert client.flush(WAIT_SECONDS)
            rows = rows_from(items, step)
        assert num_mapped(second.process.pid) == 1
    assert all(row["frobenius_norm"] == pytest.approx(norm_of(row["step"]), rel=1e-6) for row in rows)


@pytest.mark.parametrize("how", ["alone", "fork"])
def test_a_killed_trainers_memory_is_let_go_of_at_once(serve: Any, how: str, directory: Path) -> None:
    """Not after its silence: that would take the daemon an hour here. A forked worker holds nothing of it either."""
    config = directory / "rankd.toml"
    config.write_text("[limits]\npeer_timeout_seconds = 3600.0\n")
    served = serve("--config", str(config))
    command = [sys.executable, "-c", TRAINER, served.url, how]
    with fork_server.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as trainer:
        try:
            assert trainer.stdout is not None
            words = [trainer.stdout.readline().split() for _ in range(1 + (how == "fork"))]
            assert ["lends"] in words, words
            assert num_mapped(served.process.pid) == 1
        finally:
            trainer.kill()
            trainer.wait(WAIT_SECONDS)
        wait_until(lambda: num_mapped(served.process.pid) == 0)
        for name, *pid in words:
            if name == "worker":  # it lives until its standard input ends, with this block
                held = [str(path.readlink()) for path in Path(f"/proc/{pid[0]}/fd").iterdir()]
                assert not [link for link in held if "rankd-arena" in link]


def test_without_room_for_it_all_goes_in_frames(serve: Any, directory: Path) -> None:
    config = directory / "rankd.toml"
    config.write_text("[limits]\nmax_lent_bytes = 4096\nmax_lent_bytes_per_connection = 4096\n")
    served = serve("--config", str(config))
    with Client("framed", served.url, max_overhead=None) as client:
        for step in range(3):
            client.push({"w": torch.ones(SIZE, SIZE)}, step=step)
            assert client.flush(WAIT_SECONDS)
        assert client.stats.path == "zeromq"
    assert "too_much_lent" in served.log.read_text()
    assert num_mapped(served.process.pid) == 0
