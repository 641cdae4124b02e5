"""What a service manager, a probe and a batch system see of a daemon."""

import json
import math
import signal
import socket
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import rankd_client
from rankd.discovery import DiscoveryFile


def test_the_service_manager_hears_when_it_is_ready_alive_and_ending(
    serve: Callable[..., Any], clean_environment: dict[str, str], socket_dir: Path
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(socket_dir / "notify"))
        manager.settimeout(30)
        clean_environment.update(NOTIFY_SOCKET=str(socket_dir / "notify"), WATCHDOG_USEC="200000")
        daemon = serve("--url", f"ipc://{socket_dir}/d")

        def hear() -> str:
            return manager.recv(4096).decode()

        assert {hear().split("\n")[0] for _ in range(3)} == {"READY=1", "WATCHDOG=1"}
        daemon.process.send_signal(signal.SIGTERM)
        while (words := hear()) == "WATCHDOG=1":
            pass
        assert words.startswith("STOPPING=1\n")
        assert daemon.end(None)[0] == 0


def test_a_probe_hears_that_it_is_alive_and_ready(serve: Callable[..., Any], socket_dir: Path) -> None:
    base = serve("--url", f"ipc://{socket_dir}", "--http", "127.0.0.1:0").ready["http"]

    def get(path: str, **headers: str) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(urllib.request.Request(base + path, headers=headers), timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)

    status, health = get("/healthz")
    assert (status, health["status"], health["faults"]) == (200, "ok", [])
    assert get("/readyz") == (200, {"ready": True, "reason": None})
    assert get("/healthz", Host="rebound.example")[0] == 400


def test_a_requeued_job_finds_its_daemon_and_keeps_its_run(
    serve: Callable[..., Any], socket_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rankd.json"
    for variable in ("RANKD_RUN", "RANKD_KEY", "RANKD_MODE", "SLURM_ARRAY_JOB_ID"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("RANKD_URL", file.as_uri())
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    data = ["--data", str(tmp_path / "data"), "--discovery", str(file)]
    model = torch.nn.Linear(8, 8)

    torch.nn.init.constant_(model.weight, math.nan)
    alerts = rankd_client.subscribe(timeout=60)
    client = rankd_client.Client(echo=False)
    client.push(model, step=1)  # nobody is there yet
    first = serve("--url", f"ipc://{socket_dir}/node1", *data)
    assert client.flush(timeout=30)
    assert next(alerts)["state"] == "firing"
    first.process.kill()
    first.process.wait()
    assert file.exists(), "whoever is killed leaves it behind"
    second = serve("--url", f"ipc://{socket_dir}/node2", *data)
    torch.nn.init.normal_(model.weight)
    client.push(model, step=2)
    assert client.flush(timeout=30)
    assert next(alerts)["state"] == "resolved", "a subscriber finds the way too"
    alerts.close()
    client.close()
    assert json.loads(file.read_text())["push"] == second.ready["push"]

    again = rankd_client.Client(echo=False)
    assert again.run == client.run and client.run.endswith("-77")
    again.close()
    elsewhere = DiscoveryFile(file, "node3")  # a third has taken its place by now
    elsewhere.write({name: f"tcp://0.0.0.0:{port}" for port, name in enumerate(("push", "alerts", "query"), 1)}, 1.0)
    assert second.end()[0] == 0
    assert json.loads(file.read_text())["push"] == "tcp://node3:1"
