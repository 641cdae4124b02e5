"""What the tests of the gate share: gates before real libzmq sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from served_gate import LIMITS, Served

from rankd.gate import GateLimits


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def make(socket_dir: Path, context: zmq.Context[Any]) -> Iterator[Callable[..., Served]]:
    started: list[Served] = []

    def start(limits: GateLimits = LIMITS, kind: int = zmq.ROUTER, tcp: bool = False) -> Served:
        directory = socket_dir / str(len(started))
        directory.mkdir()
        started.append(Served(directory, context, limits, kind, tcp))
        return started[-1]

    yield start
    for served in started:
        served.close()
