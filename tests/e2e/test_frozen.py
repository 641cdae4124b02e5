"""A daemon that stood still (SIGSTOP) takes nobody for gone who said bye meanwhile."""

from __future__ import annotations

import json
import os
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pushing import LAYERS, steps_recorded, weights

from rankd_client import Client

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60.0
PEER_TIMEOUT_SECONDS = 3.0


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def trainers(served: Any) -> list[dict[str, Any]]:
    with urllib.request.urlopen(f"{served.ready['http']}/trainers", timeout=WAIT_SECONDS) as answer:
        processes: list[dict[str, Any]] = json.load(answer)["processes"]
    return processes


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("is_lent", [False, True])
def test_a_trainer_that_said_bye_to_a_frozen_daemon_is_not_gone(serve: Any, directory: Path, is_lent: bool) -> None:
    """Over a network all is on its way at once; what was lent is waited for, as long as a close() may take."""
    (directory / "rankd.toml").write_text(f"[limits]\npeer_timeout_seconds = {PEER_TIMEOUT_SECONDS}\n")
    options = ["--config", str(directory / "rankd.toml"), "--data", str(directory / "data"), "--http", "127.0.0.1:0"]
    served = serve(*options, "--log-level", "info", **({} if is_lent else {"url": "tcp://127.0.0.1:0"}))
    with Client("frozen", served.ready["push"], max_overhead=None, strict=True, echo=False) as client:
        for step in range(2):  # by now memory is lent, where it is
            client.push(weights(step), step=step)
            assert client.flush(WAIT_SECONDS)
        assert client.stats.path == ("memfd" if is_lent else "zeromq")
        os.kill(served.process.pid, signal.SIGSTOP)
        frozen_at = time.monotonic()
        try:
            wait_until(lambda: is_stopped(served.process.pid), "it does not stop")
            client.push(weights(2), step=2)
            client.close()
            time.sleep(max(0.0, frozen_at + PEER_TIMEOUT_SECONDS + 0.2 - time.monotonic()))
        finally:
            os.kill(served.process.pid, signal.SIGCONT)
    wait_until(lambda: all(row["gone"] for row in trainers(served)), "it is still there")
    assert trainers(served) == [] and "peer left run='frozen'" in served.log.read_text()
    served.stop()
    if not is_lent:
        recorded = steps_recorded(directory / "data", "frozen")
        assert {layer: steps[-1] for layer, steps in recorded.items()} == dict.fromkeys(LAYERS, 2), "its last push too"
