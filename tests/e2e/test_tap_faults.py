"""Whatever happens to the daemon, or to the trainer: pushes go on, and in the end the newest of each layer is recorded
once."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch
from pushing import LAYERS, pushing, steps_recorded, weights
from torch import nn

from rankd.store.reader import Reader
from rankd_client import Client

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60.0
OPTIONS: dict[str, Any] = {"max_overhead": None, "strict": True, "echo": False}


def assert_newest_recorded_once(data: Path, run: str, newest: dict[str, int]) -> None:
    """Of each layer, the last step that was queued; and no step twice."""
    steps = steps_recorded(data, run)
    assert {layer: recorded[-1] for layer, recorded in steps.items()} == newest and set(newest) == LAYERS
    assert all(recorded == sorted(set(recorded)) for recorded in steps.values())


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.05)


@pytest.mark.long
def test_a_daemon_that_is_killed_and_replaced_at_any_moment(serve: Any, directory: Path) -> None:
    """The last has a history of its own: to the trainer another daemon, which knows nothing of what was sent."""
    moments = random.Random(0)
    served = serve("--data", str(directory / "first"))
    with Client("killed", served.url, **OPTIONS) as client:
        with pushing(client) as trainer:
            for data in ("first", "second"):
                wait_until(lambda: client.connected, "it does not come back")
                trainer.wait(moments.randrange(1, 300))
                served.process.kill()
                served.process.wait(WAIT_SECONDS)
                served = serve("--data", str(directory / data))
            trainer.wait(1)
        assert client.flush(WAIT_SECONDS) and client.num_errors == 0
    served.stop()
    assert_newest_recorded_once(directory / "second", "killed", trainer.newest)
    for recorded in steps_recorded(directory / "first", "killed").values():
        assert recorded == sorted(set(recorded))


@pytest.mark.long
def test_a_daemon_that_is_frozen_at_any_moment(serve: Any, directory: Path) -> None:
    """For a moment, and for so long that the client gives the connection up and sends everything again."""
    moments = random.Random(1)
    served = serve("--data", str(directory / "data"))
    with Client("frozen", served.url, **OPTIONS) as client:
        with pushing(client) as trainer:
            wait_until(lambda: client.connected, "it does not connect")
            for given_up in (False, False, True):
                trainer.wait(moments.randrange(1, 200))
                served.process.send_signal(signal.SIGSTOP)
                try:
                    trainer.wait(moments.randrange(100, 300))
                    if given_up:
                        wait_until(lambda: not client.connected, "a silent daemon counts as there")
                finally:
                    served.process.send_signal(signal.SIGCONT)
        assert client.flush(WAIT_SECONDS) and client.num_errors == 0
    served.stop()
    assert_newest_recorded_once(directory / "data", "frozen", trainer.newest)


def test_a_model_that_changes_in_mid_run_is_followed_by_its_history(serve: Any, directory: Path) -> None:
    """Layers added, removed, resized, of another dtype, frozen, and gone for a while."""
    served = serve("--data", str(directory / "data"))
    torch.manual_seed(0)
    model = nn.ModuleDict({"a": nn.Linear(16, 16, bias=False), "b": nn.Linear(16, 16, bias=False)})

    def add() -> None:
        model["c"] = nn.Linear(4, 8, bias=False)

    def remove() -> None:
        del model["b"]

    def resize() -> None:
        model["a"] = nn.Linear(16, 8, bias=False)

    def halve() -> None:
        model["a"].half()

    def freeze() -> None:
        model.requires_grad_(False)

    def leave() -> None:
        model["a"].to("meta")

    with Client("changed", served.url, **OPTIONS) as client:
        changes = [add, remove, resize, halve, freeze, leave]
        for step in range(len(changes) + 1):
            client.push(model, step=step)
            assert client.flush(WAIT_SECONDS)
            if step < len(changes):
                changes[step]()
        assert client.num_errors == 0
    served.stop()
    with Reader(directory / "data") as reader:
        rows = {(row.step, row.layer[0], row.shape, row.source_dtype) for _, row in reader.measurements("changed")}
        resets = [alert["step"] for _, alert in reader.alerts("changed") if alert["rule"] == "baseline_reset"]
    square, wide, small = (16, 16), (8, 16), (8, 4)
    assert rows == {
        *((step, "a", square, "float32") for step in (0, 1, 2)),
        (3, "a", wide, "float32"),
        *((step, "a", wide, "float16") for step in (4, 5)),
        *((step, "b", square, "float32") for step in (0, 1)),
        *((step, "c", small, "float32") for step in range(1, 7)),
    }
    assert resets == [3]


# Pushes 48 MB for ever.
ENDLESS = """
import sys, torch
from rankd_client import Client

client = Client("endless", sys.argv[1], max_overhead=None, strict=True)
model = {str(i): torch.randn(2048, 2048) for i in range(6)}
print("pushing", flush=True)
while True:
    client.push(model)
"""


SPARE_FILES = 2
"""A pipe that the daemon opens once, when it first measures something large. Each trainer has four files and more."""


def open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def mapped_memfds(pid: int) -> int:
    return Path(f"/proc/{pid}/maps").read_text().count("/memfd:")


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc")
def test_trainers_that_are_killed_in_the_middle_of_a_push_leave_nothing_in_the_daemon(
    serve: Any, directory: Path
) -> None:
    config = directory / "rankd.toml"
    config.write_text("[limits]\npeer_timeout_seconds = 3.0\nassembly_timeout_seconds = 2.0\n")
    served = serve("--config", str(config), "--http", "127.0.0.1:0", "--tier", "norms")
    pid = served.process.pid

    def assembly_bytes() -> int:
        with urllib.request.urlopen(f"{served.ready['http']}/healthz", timeout=WAIT_SECONDS) as answer:
            return int(json.load(answer)["assembly_bytes"])

    def kill_a_trainer(seconds: float) -> None:
        trainer = fork_server.Popen([sys.executable, "-c", ENDLESS, served.url], stdout=subprocess.PIPE)
        try:
            assert trainer.stdout is not None and trainer.stdout.readline() == b"pushing\n"
            time.sleep(seconds)
        finally:
            trainer.kill()
            trainer.communicate()

    with Client("other", served.url, **OPTIONS) as other:
        other.push(weights(0), step=0)
        assert other.flush(WAIT_SECONDS)
        num_files, num_memfds = open_files(pid), mapped_memfds(pid)
        for moment in (0.2, 0.35, 0.5):
            kill_a_trainer(moment)
        other.push(weights(1), step=1)
        assert other.flush(WAIT_SECONDS), "the others are served"
        wait_until(lambda: open_files(pid) <= num_files + SPARE_FILES, "files are still open")
        wait_until(lambda: mapped_memfds(pid) <= num_memfds, "a trainer's memory is still mapped")
        wait_until(lambda: assembly_bytes() == 0, "a part of a layer is kept")
