"""A daemon whose history cannot be read just now."""

import asyncio
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rankd import reading
from rankd.archive import Archive
from rankd.config import serve_config
from rankd.daemon import Daemon
from rankd.faults import DAEMON_RUN
from rankd_client.wire import Ack, AlertNotice, Heartbeat


def floats(*values: float) -> bytes:
    return np.array(values, np.float32).tobytes()


async def test_a_disk_that_hangs_in_a_read_holds_up_nothing_but_the_memory_of_old_layers(
    socket_dir: Path, tmp_path: Path, raw_peer: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "PATIENCE_SECONDS", 0.2)
    daemon = Daemon(serve_config({"url": f"ipc://{socket_dir}", "http": "off", "device": "cpu", "data": str(tmp_path)}))
    answers = threading.Event()
    for name in ("last_steps", "recall"):
        monkeypatch.setattr(Archive, name, lambda archive, *of, **how: answers.wait(60) and None)

    def trainer() -> None:
        peer = raw_peer(daemon.ready().push)
        peer.greet()
        for step in (1, 2):
            peer.push("w", step, floats(1, 2, 2, 1), (2, 2))
            assert peer.hear_end_of("w", step) == "recorded"
        peer.push("w", 3, floats(math.nan), (1, 1))
        assert isinstance(notice := peer.hear(Ack, Heartbeat), AlertNotice) and notice.alert["rule"] == "nonfinite"

    running = asyncio.create_task(daemon.run(lambda ready: None))
    try:
        await asyncio.to_thread(trainer)
        (fault,) = daemon.current.firing(DAEMON_RUN)
        assert fault["rule"] == "daemon_history_unread" and "no answer within 0.2 s" in fault["message"]
        assert daemon.counters["num_unread"] == 2, "for the run, and for its layer; the rest is not asked for"
    finally:
        answers.set()
        daemon.stop.set()
        await asyncio.wait_for(running, 60)
    assert daemon.drained
