"""Real daemons that measure on Ray: one of their own, and one that is lost."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ray_nodes import RayNodes, processes_with

from rankd_client import Client, subscribe

pytestmark = [pytest.mark.e2e, pytest.mark.long]
WAIT_SECONDS = 60.0


def until(done: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def push(url: str, *steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    with Client("r", url, max_overhead=None, echo=False) as client:
        for step in steps:
            client.push({f"w{n}": torch.randn(48, 32, generator=generator) for n in range(3)}, step=step)
            assert client.flush(WAIT_SECONDS)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_private_ray_is_on_loopback_alone_and_ends_with_its_daemon(
    serve: Any, directory: Path, monkeypatch: pytest.MonkeyPatch, signum: int
) -> None:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(directory))  # where a cluster that runs on this machine is not found
    monkeypatch.setenv("RAY_TMPDIR", str(directory))
    monkeypatch.setenv("HOME", str(directory))  # for Ray's token
    stale = directory / "rankd-ray-stale"
    (stale / "r").mkdir(parents=True)  # of a daemon that is not there any more
    if signum == signal.SIGKILL:
        monkeypatch.setenv("RAY_ADDRESS", "local")  # Ray's own word for it
    daemon = serve("--executor", "ray", "--device", "cpu")
    push(daemon.url, 1, 2)
    assert not stale.exists()
    (home,) = directory.glob("rankd-ray-*")
    assert home.stat().st_mode & 0o077 == 0
    assert not (directory / ".ray").exists(), "Ray's token"
    ours = [pid for pid in processes_with(f"{directory}/rankd-ray-") if pid != os.getpid()]
    assert len(ours) > 3, "Ray's processes"
    assert {address for pid in ours for address in listening(pid)} == {"127.0.0.1"}
    assert daemon.stop(signum) == (0 if signum == signal.SIGTERM else -signal.SIGKILL)
    until(lambda: not [pid for pid in ours if Path(f"/proc/{pid}/cmdline").exists()])
    until(lambda: not list(directory.glob("rankd-ray-*")))


def listening(pid: int) -> set[str]:
    """The addresses on which a process takes TCP connections; IPv4, also where it is within IPv6."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        try:
            inodes.add(str(link.readlink()))
        except FileNotFoundError:
            continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
            words = line.split()
            if words[3] == "0A" and f"socket:[{words[9]}]" in inodes:
                found.add(".".join(str(byte) for byte in reversed(bytes.fromhex(words[1].partition(":")[0][-8:]))))
    return found


def test_a_cluster_lost_in_mid_run_is_told_and_measuring_goes_on(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = RayNodes(1, num_cores=2)
    try:
        for name, value in nodes.environment.items():
            monkeypatch.setenv(name, value)
        daemon = serve("--executor", "ray", "--device", "cpu")
        with subscribe(daemon.url, timeout=WAIT_SECONDS) as alerts:
            push(daemon.url, 1, 2)
            nodes.stop_head()
            push(daemon.url, 3, 4)
            (fault,) = [next(alerts)]
        assert (fault["rule"], fault["state"], fault["run"]) == ("daemon_ray", "firing", "@daemon")
        began = time.monotonic()
        assert daemon.stop() == 0 and time.monotonic() - began < 20
        assert not nodes.drivers()
    finally:
        nodes.close()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("silent", [True, False])
def test_a_signal_ends_joining(directory: Path, signum: int, silent: bool) -> None:
    """One that never comes to its end, since nobody says a word there; and that of a private Ray, half started."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("RANKD_", "RAY_"))}
    environment = {**kept, "HOME": str(directory), "TMPDIR": str(directory), "RAY_TMPDIR": str(directory)}
    with socket.create_server(("127.0.0.1", 0)) as server:
        if silent:
            environment["RAY_ADDRESS"] = f"127.0.0.1:{server.getsockname()[1]}"
        command = [sys.executable, "-m", "rankd", "serve", "--http", "off", "--url", f"ipc://{directory}/d"]
        command += ["--executor", "ray", "--device", "cpu", "--data", str(directory / "data")]
        with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as daemon:
            if silent:
                for _ in range(2):  # the daemon, which only looks whether somebody is there; then its driver
                    server.accept()[0].close()
            else:
                until(lambda: list(directory.glob("rankd-ray-*/r/session_2*/logs")))
            daemon.send_signal(signum)
            out, errors = daemon.communicate(timeout=WAIT_SECONDS)  # joining would take 90 s
    assert (daemon.returncode, out) == (0, b""), errors
    assert b"Traceback" not in errors
    until(lambda: not processes_with(str(directory), title="ray"))
    assert not list(directory.glob("rankd-ray-*"))


def test_a_cluster_that_is_not_there_is_named_at_the_start() -> None:
    command = [sys.executable, "-m", "rankd", "serve", "--http", "off", "--executor", "ray://127.0.0.1:9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_SECONDS, check=False)
    assert done.returncode == 2
    assert (
        "executor='ray://127.0.0.1:9': ray://127.0.0.1:9 does not answer: nobody takes a connection there"
        in done.stderr
    )
    assert "Traceback" not in done.stderr
