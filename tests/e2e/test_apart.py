"""A daemon that measures in processes of its own."""

import json
import os
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from waiting import is_there, until

SECONDS = 60


def children(pid: int) -> set[int]:
    return {int(each) for path in Path(f"/proc/{pid}/task").glob("*/children") for each in path.read_text().split()}


def test_what_is_pushed_is_measured_through_a_killed_process_and_none_outlives_the_daemon(
    serve: Callable[..., Any], raw_peer: Callable[..., Any]
) -> None:
    daemon = serve("--device", "cpu", "--executor", "processes", "--http", "127.0.0.1:0")
    pid = daemon.process.pid
    peer = raw_peer(daemon.ready["push"])
    peer.greet()
    values = np.diag(np.arange(1.0, 9.0)).astype(np.float32).tobytes()
    peer.push("first", 1, values, (8, 8))
    assert peer.hear_end_of("first", 1) == "recorded"
    before = children(pid)
    assert len(before) >= 2
    for child in before:
        os.kill(child, signal.SIGKILL)
    peer.push("second", 1, values, (8, 8))
    assert peer.hear_end_of("second", 1) == "recorded", "by the process for the rest, if the others are not back yet"
    with urllib.request.urlopen(f"{daemon.ready['http']}/healthz", timeout=SECONDS) as answer:
        told = json.load(answer)
    assert told["device"] == "cpu" and [fault["name"] for fault in told["faults"]] == ["device"]
    left = children(pid)
    assert daemon.stop() == 0 and "Traceback" not in daemon.log.read_text(), daemon.log.read_text()
    assert daemon.process.stdout.read() == "", "but for the line that says ready"
    until(lambda: not any(map(is_there, left)))
