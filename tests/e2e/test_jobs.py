"""A job of several real processes that push shards: what comes whole, and what is said of one that is killed."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from place_rows import Rows

from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60.0
LIMITS = "[limits]\nheartbeat_seconds = 0.1\npeer_timeout_seconds = 30.0\ntrainer_grace_seconds = 0.5\n"


def train(url: str, process_rank: int, world_size: int, steps: Any) -> None:
    """Push rows of two matrices at each step until the end; 20 ms a step."""
    os.environ |= {"RANK": str(process_rank), "WORLD_SIZE": str(world_size)}
    torch.set_num_threads(1)
    weights = {f"h.{number}": torch.randn(8, 16) for number in range(2)}
    client = Client("job", url, max_overhead=None, echo=False, adapters=(Rows(process_rank, world_size),))
    step = steps[process_rank]
    while True:
        client.push(weights, step=step)
        steps[process_rank] = step = step + 1
        time.sleep(0.02)


@pytest.fixture
def start(serve: Any, directory: Path) -> Iterator[tuple[Any, Callable[..., Any], Any]]:
    """The daemon, what starts a process of a job of two, and the steps that they have come to."""
    (directory / "rankd.toml").write_text(LIMITS)
    served = serve(
        "--http", "127.0.0.1:0", "--data", str(directory / "data"), "--config", str(directory / "rankd.toml")
    )
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "rankd_client.client"])
    steps, children = context.Array("q", 2, lock=False), []

    def begin(process_rank: int) -> Any:
        child = context.Process(target=train, args=(served.url, process_rank, 2, steps), daemon=True)
        child.start()
        children.append(child)
        return child

    yield served, begin, steps
    for child in children:
        child.kill()
        child.join()


def get(served: Any, path: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{served.ready['http']}{path}", timeout=WAIT_SECONDS) as answer:
        body: dict[str, Any] = json.load(answer)
    return body


def wait_for(true: Callable[[], Any], what: str) -> Any:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.05)
    return found


def test_a_process_that_is_killed_is_told_of_once_and_its_memory_is_free(start: Any) -> None:
    served, begin, _ = start
    first, second = begin(0), begin(1)
    wait_for(lambda: get(served, "/healthz").get("num_assembled", 0) >= 20, "no layer came whole")
    rows = get(served, "/trainers")["processes"]
    assert {(row["run"], row["process_rank"], row["gone"]) for row in rows} == {("job", 0, False), ("job", 1, False)}
    os.kill(second.pid, signal.SIGKILL)
    with subscribe(served.url, run="job", timeout=WAIT_SECONDS) as alerts:
        alert = next(iter(alerts))
    assert (alert["rule"], alert["state"], alert["severity"]) == ("trainer_gone", "firing", "info")
    assert alert["processes"] == [1] and alert["layer"] is None
    assert first.is_alive()
    # The first one pushes on: what waits for the second is given up again and again, and that is no news.
    before = get(served, "/healthz")["dropped_process_gone"]
    wait_for(lambda: get(served, "/healthz")["dropped_process_gone"] > before + 4, "layers wait for one that is gone")
    assert get(served, "/healthz")["num_alerts"] == 1
    os.kill(first.pid, signal.SIGKILL)
    wait_for(lambda: get(served, "/healthz")["assembly_bytes"] == 0, "memory of a job that is gone")


def test_a_process_that_is_started_again_ends_the_alert(start: Any) -> None:
    served, begin, steps = start
    children = [begin(0), begin(1)]
    wait_for(lambda: get(served, "/healthz").get("num_assembled", 0) >= 4, "no layer came whole")
    with subscribe(served.url, run="job", timeout=WAIT_SECONDS) as subscription:
        alerts = (alert for alert in subscription if alert["rule"] == "trainer_gone")
        for child in children:
            os.kill(child.pid, signal.SIGKILL)
        fired = next(alerts)
        assert fired["processes"] == [0, 1], "one alert for both"
        steps[0] = steps[1] = min(steps)
        begin(0)
        begin(1)
        ended = next(alerts)
    assert (ended["state"], ended["alert_id"]) == ("resolved", fired["alert_id"])
    num_whole = get(served, "/healthz")["num_assembled"]
    wait_for(lambda: get(served, "/healthz")["num_assembled"] > num_whole, "the job does not go on")
