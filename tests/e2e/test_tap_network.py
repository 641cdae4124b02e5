"""A daemon behind a network that is slow, breaks, goes silent or refuses: pushes go on, and what is newest arrives."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from proxy import Proxy
from pushing import LAYERS, Pushing, pushing, steps_recorded, weights

from rankd_client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.long]
WAIT_SECONDS = 60.0
SIZE = 512
"""1.5 MiB a push as bfloat16."""

ARENA_BYTES = 4 << 20


@pytest.fixture
def data(directory: Path) -> Path:
    return directory / "data"


@pytest.fixture
def network(serve: Any, data: Path) -> Iterator[Proxy]:
    """To a daemon that listens on TCP."""
    served = serve("--data", str(data), url="tcp://127.0.0.1:0")
    with Proxy(int(served.ready["push"].rpartition(":")[2])) as proxy:
        yield proxy


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def connect(network: Proxy) -> Client:
    options: dict[str, Any] = {"max_overhead": None, "strict": True, "echo": False, "max_memory_bytes": ARENA_BYTES}
    return Client("network", f"tcp://127.0.0.1:{network.port}", **options)


def arena_bytes(client: Client) -> int:
    assert client._pusher is not None
    return client._pusher._outbox.arena.num_bytes


def assert_all_well(client: Client, trainer: Pushing, data: Path) -> None:
    """The trainer has stopped: of each layer, the last step that was queued arrives; and no step twice. What was queued
    last may have made room for another layer, where ZeroMQ held the rest: then what is pushed next arrives."""
    assert client.flush(WAIT_SECONDS) and client.connected and client.num_errors == 0
    if client.stats.num_dropped:
        step = trainer.step + 1
        assert client.push(weights(step, SIZE), step=step).num_queued == len(LAYERS)
        trainer.newest |= dict.fromkeys(LAYERS, step)
        assert client.flush(WAIT_SECONDS)
    assert arena_bytes(client) <= ARENA_BYTES
    steps = steps_recorded(data, "network", SIZE)
    assert {layer: recorded[-1] for layer, recorded in steps.items()} == trainer.newest
    assert set(trainer.newest) == LAYERS
    assert all(recorded == sorted(set(recorded)) for recorded in steps.values())


def test_a_slow_network_holds_up_nobody_and_brings_what_is_newest(network: Proxy, data: Path) -> None:
    network.bytes_per_second, network.delay_seconds = 4e6, 0.05
    with connect(network) as client, pushing(client, SIZE, 0.005) as trainer:
        wait_until(lambda: client.connected, "it does not connect")
        first = trainer.step
        wait_until(lambda: network.num_bytes > 6 << 20, "nothing goes through")
        assert trainer.step - first > 20, "more is pushed than goes through, or the trainer waits for the network"
        trainer.stop()
        assert_all_well(client, trainer, data)


def test_connections_that_break_again_and_again(network: Proxy, data: Path) -> None:
    network.bytes_per_second = 20e6
    with connect(network) as client, pushing(client, SIZE, 0.005) as trainer:
        for _ in range(5):
            passed = network.num_bytes + (2 << 20)
            wait_until(lambda passed=passed: network.num_bytes > passed, "it does not come back")  # type: ignore[misc]
            network.cut()
            trainer.wait(5)
        network.refusing = True
        network.cut()
        trainer.wait(50)
        network.refusing = False
        trainer.stop()
        assert network.num_connections > 6
        assert_all_well(client, trainer, data)


def test_a_network_that_goes_silent(network: Proxy, data: Path) -> None:
    """Both ends believe that the connection is there, and the next one is no better, until it passes again."""
    with connect(network) as client, pushing(client, SIZE, 0.005) as trainer:
        wait_until(lambda: client.connected, "it does not connect")
        trainer.wait(20)
        network.silence()
        wait_until(lambda: not client.connected, "silence is not noticed")
        trainer.wait(50)
        connections = network.num_connections
        wait_until(lambda: network.num_connections > connections, "it does not try again")
        network.speak()
        wait_until(lambda: client.connected, "it does not come back")
        trainer.stop()
        assert_all_well(client, trainer, data)


def test_a_trainer_ends_whose_network_is_silent(network: Proxy, data: Path) -> None:
    client = connect(network)
    client.push({"w": torch.ones(SIZE, SIZE)}, step=0)
    assert client.flush(WAIT_SECONDS)
    network.silence()
    client.push({"w": torch.ones(SIZE, SIZE)}, step=1)
    assert not client.flush(0.1)
    client.close(timeout=0.5)
    assert client.num_errors == 0
