"""What tests of several modules share: short socket directories, raw wire peers, daemons as processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fork_server
import pytest
import zmq
from hypothesis import HealthCheck, settings

from rankd_client.wire import Ack, Bye, Chunk, Heartbeat, Hello, Message, Welcome, decode, encode

# How long a draw or an example takes says how busy the machine is, and no test is to fail of that.
settings.register_profile("any_machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any_machine")

# Before torch is loaded, here and in each process that a test starts: there are other tests for the other cores, and
# threads that wait for one another on busy cores are slow.
os.environ.setdefault("OMP_NUM_THREADS", "1")

DEADLINE_SECONDS = 30
MAX_WORKERS = 4
"""Each takes some hundred MB, and so does each process that a test starts."""


def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: tests wait for half of their time."""
    return min(len(os.sched_getaffinity(0)) + 1, MAX_WORKERS)


def pytest_unconfigure() -> None:
    fork_server.close()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The long ones first, in the order they come in: none of them is still at work when all others are done."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.fixture
def socket_dir() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name: pytest's own may be too long."""
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        yield Path(directory)


class RawPeer:
    """A client that speaks the wire and nothing more, with blocking calls. `session` is 16 bytes."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], address: str, run: str = "r") -> None:
        self.socket = context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, DEADLINE_SECONDS * 1000)
        self.socket.setsockopt(zmq.SNDTIMEO, DEADLINE_SECONDS * 1000)
        self.socket.connect(address)
        self.run = run
        self.session = os.urandom(16)

    def say(self, message: Message) -> None:
        self.socket.send_multipart(encode(message))

    def hear(self, *ignored: type) -> Message:
        """The next message that is none of the `ignored` types (heartbeats unless given)."""
        while True:
            message = decode(self.socket.recv_multipart())
            if not isinstance(message, ignored or (Heartbeat,)):
                return message

    def greet(self) -> Welcome:
        self.say(Hello(self.run, self.session))
        welcome = self.hear()
        assert isinstance(welcome, Welcome)
        return welcome

    def push(self, layer: str, step: int, values: bytes, shape: tuple[int, ...], chunk_bytes: int = 8 << 20) -> None:
        """`values` are float32, row-major."""
        for start in range(0, len(values), chunk_bytes):
            self.say(Chunk(layer, step, "float32", shape, len(values), start, values[start : start + chunk_bytes]))

    def hear_end_of(self, layer: str, step: int) -> str:
        """How a snapshot ended: recorded or superseded."""
        while True:
            match self.hear():
                case Ack(state=state, layer=name, step=number) if (name, number, state != "received") == (
                    layer,
                    step,
                    True,
                ):
                    return state
                case Bye():
                    raise AssertionError("the daemon left first")


@pytest.fixture
def raw_peer() -> Iterator[Callable[..., RawPeer]]:
    """Makes RawPeers: `raw_peer(address, run="r")`."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    peers: list[RawPeer] = []

    def make(address: str, run: str = "r") -> RawPeer:
        peers.append(RawPeer(context, address, run))
        return peers[-1]

    yield make
    for peer in peers:
        peer.socket.close(linger=0)
    context.destroy(linger=0)


class ServedDaemon:
    """A daemon in a process of its own; `ready` maps push, alerts, query and http to what it bound."""

    def __init__(self, command: list[str], environment: dict[str, str]) -> None:
        self.process = fork_server.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        words = self.process.stdout.readline().split()
        self.ready = dict(word.split("=", 1) for word in words[1:])

    def end(self, signum: int | None = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and stderr, after `signum` (None: by itself)."""
        if signum is not None:
            self.process.send_signal(signum)
        _, errors = self.process.communicate(timeout=DEADLINE_SECONDS)
        return self.process.returncode, errors


@pytest.fixture
def clean_environment(tmp_path: Path) -> dict[str, str]:
    """The environment less what steers rankd, and with state directories of its own."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RANKD_")}
    homes = dict.fromkeys(("XDG_RUNTIME_DIR", "XDG_STATE_HOME", "XDG_CONFIG_HOME"), str(tmp_path))
    return {**kept, **homes, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def serve(clean_environment: dict[str, str]) -> Iterator[Callable[..., ServedDaemon]]:
    """Starts daemons: `serve(*options)`, or `serve(command=[…])` for another program that prints a ready line."""
    started: list[ServedDaemon] = []

    def start(*options: str, command: list[str] | None = None) -> ServedDaemon:
        command = command or [sys.executable, "-m", "rankd", "serve", "--http", "off", "--device", "cpu"]
        started.append(ServedDaemon([*command, *options], clean_environment))
        return started[-1]

    yield start
    for daemon in started:
        if daemon.process.poll() is None:
            daemon.process.kill()
        daemon.process.communicate()
