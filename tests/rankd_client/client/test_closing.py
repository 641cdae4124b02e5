"""What close() says of what nobody has, and flush() of a client that is closed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from absent_daemon import Make, model_of
from link_ends import PATIENCE_SECONDS, Router
from torch import nn

from rankd_client.link import loop
from rankd_client.wire import Ack, Bye


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    router = Router(f"ipc://{tmp_path}/push.sock")
    yield router
    router.close()


def closed_lines(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "closed" in line]


def test_what_nobody_has_at_the_end_is_said_once_and_flush_goes_on_saying_so(
    make: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    client = make()
    for _ in range(3):
        client.push(model_of(4), also={"h.0.weight": ("gradient", torch.ones(8, 8)), "f": torch.ones(4, 8)})
    for step in range(2):
        client.push_measurements({"w": {"effective_rank": 1.0}}, step)
    client.close()
    client.close()
    assert closed_lines(capfd) == ["rankd: closed: no daemon took the newest snapshots of 6 layers, and 2 measurements"]
    assert not client.flush() and client.num_errors == 0


def test_what_had_no_room_before_is_told_with_it(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    client = make(max_memory_bytes=2 * 128)
    for _ in range(2):
        client.push(model_of(4))
    client.close()
    assert closed_lines(capfd) == [
        "rankd: closed: no daemon took the newest snapshots of 2 layers; 2 had been dropped for want of memory"
    ]


@pytest.mark.parametrize("mode", ["online", "offline", "disabled"])
def test_where_nothing_is_left_nothing_is_said(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], mode: str
) -> None:
    monkeypatch.setenv("RANKD_MODE", mode)
    monkeypatch.setenv("RANKD_SPOOL", str(tmp_path / "spool"))
    clients = [make(), make()]
    clients[0].push(nn.Module())
    if mode != "online":
        clients[1].push(model_of())
    for client in clients:
        client.close()
        assert client.flush()
    assert closed_lines(capfd) == []


def test_of_a_client_that_is_not_closed_nothing_is_said(tmp_path: Path) -> None:
    program = (
        "import rankd_client, torch\n"
        "client = rankd_client.Client(run='x')\n"
        "assert client.push({'w': torch.ones(2, 2)}).num_queued == 1\n"
    )
    environment = {**os.environ, "RANKD_URL": f"ipc://{tmp_path}"}
    run = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=60)
    assert (run.returncode, run.stdout) == (0, "") and "closed" not in run.stderr


@pytest.mark.parametrize("is_recorded", [False, True])
def test_what_a_daemon_has_at_the_end_is_its_business_and_not_settled_before_it_says_so(
    make: Make, router: Router, capfd: pytest.CaptureFixture[str], is_recorded: bool
) -> None:
    client = make(echo=False)
    client.push({"w": torch.ones(2, 2)}, 3)
    router.welcome()
    router.chunk()
    router.send(Ack("received", "w", 3, credit_bytes=8))
    if is_recorded:
        router.send(Ack("recorded", "w", 3))
        assert client.flush(PATIENCE_SECONDS)
    client.close()
    assert closed_lines(capfd) == [] and client.flush() == is_recorded


def test_what_a_daemon_that_stands_still_was_sent_nobody_has(
    make: Make, router: Router, capfd: pytest.CaptureFixture[str]
) -> None:
    client = make(echo=False)
    client.push({"w": torch.ones(2, 2), "v": torch.ones(2, 2), "u": torch.ones(2, 2)}, 3)
    client.push_measurements({"x": {"effective_rank": 1.0}}, 3)
    router.welcome()
    layers = [router.chunk().layer for _ in range(3)]
    router.receive()
    router.send(Ack("received", layers[0], 3, credit_bytes=8))
    client.close(0.5)
    assert closed_lines(capfd) == ["rankd: closed: no daemon took the newest snapshots of 2 layers, and 1 measurement"]
    assert not client.flush()


def test_what_a_daemon_had_that_is_gone_nobody_has(
    make: Make, router: Router, capfd: pytest.CaptureFixture[str]
) -> None:
    client = make(echo=False)
    client.push({"w": torch.ones(2, 2), "v": torch.ones(2, 2)}, 3)
    router.welcome()
    router.chunk()
    router.chunk()
    router.send(Ack("recorded", "w", 3), Bye())
    while client.connected:
        time.sleep(0.001)
    assert not client.flush(0), "v is not recorded"
    client.close()
    assert closed_lines(capfd) == ["rankd: closed: no daemon took the newest snapshots of 1 layer"]
    assert not client.flush()


def test_what_a_daemon_had_no_room_for_nobody_has(
    make: Make, router: Router, capfd: pytest.CaptureFixture[str]
) -> None:
    client = make(echo=False, dtype="float32")
    client.push({"w": torch.ones(2, 2), "v": torch.ones(2, 2), "u": torch.ones(2, 2)}, 3)
    router.welcome(credit_bytes=16)
    first = router.chunk()
    router.send(Ack("received", first.layer, 3, credit_bytes=1))  # too little for another
    client.close(0.2)
    assert closed_lines(capfd) == ["rankd: closed: no daemon took the newest snapshots of 2 layers"]


def test_a_daemon_that_is_found_while_the_client_closes_has_all(
    make: Make, router: Router, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "FIRST_ATTEMPT_SECONDS", PATIENCE_SECONDS)
    client = make(echo=False)
    client.push({"w": torch.ones(2, 2), "v": torch.ones(2, 2)}, 3)
    assert not client.connected
    closing = threading.Thread(target=client.close, args=(PATIENCE_SECONDS,))
    closing.start()
    router.welcome()
    for _ in range(2):
        router.send(Ack("received", router.chunk().layer, 3, credit_bytes=8))
    closing.join()
    assert closed_lines(capfd) == [] and not client.flush()
