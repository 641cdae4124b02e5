"""More than weights, with real processes: features, gradients and numbers that a trainer computed itself."""

from __future__ import annotations

import itertools
import json
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 30.0


def rows_of(data: Path, run: str, *options: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "rankd", "query", run, "--data", str(data), "--json", *options]
    done = fork_server.run(command, capture_output=True, text=True, timeout=120, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def points(step: int) -> torch.Tensor:
    """A batch of a mixture of 10 clusters."""
    centres = torch.randn(10, 32, generator=torch.Generator().manual_seed(1))
    draws = torch.Generator().manual_seed(step)
    return centres[torch.randint(10, (256,), generator=draws)] + 0.5 * torch.randn(256, 32, generator=draws)


def spread(z: torch.Tensor) -> torch.Tensor:
    """VICReg's terms that keep features apart."""
    centred = z - z.mean(0)
    covariance = centred.T @ centred / (len(z) - 1)
    off_diagonal = covariance - torch.diag(covariance.diagonal())
    return 25 * F.relu(1 - covariance.diagonal().add(1e-4).sqrt()).mean() + off_diagonal.square().sum() / z.shape[1]


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Several are many times slower where cores are busy."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.mark.usefixtures("one_thread")
def test_a_collapse_that_ranks_of_weights_do_not_show_is_seen_in_the_features(serve: Any) -> None:
    """Self-supervised training in which, from step 400 on, nothing keeps the features apart any more."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    probe = points(0)
    with Client("ssl", serve().url, max_overhead=None, every_steps=5, dtype="float32") as client:
        for step in range(500):
            x = points(step)
            a, b = model(x + 0.3 * torch.randn(x.shape)), model(x + 0.3 * torch.randn(x.shape))
            if step < 400:
                loss = 25 * F.mse_loss(a, b) + spread(a) + spread(b)
            else:
                loss = -25 * F.cosine_similarity(a, b.roll(1, 0)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                features = model(probe)
            client.push(model, step, also={"features": features, "0.weight": ("gradient", model[0].weight.grad)})
            if step % 5 == 0:
                assert client.flush(WAIT_SECONDS)
        alerts = [alert for alert in client.alerts() if alert["severity"] != "info"]
    falls = [alert for alert in alerts if alert["rule"] == "effective_rank_drop"]
    assert falls and {(alert["layer"], alert["role"]) for alert in falls} == {("features", "feature")}
    assert falls[0]["step"] >= 400 and falls[0]["message"].startswith("features (feature): effective_rank fell")
    assert alerts[0]["role"] == "feature", "the norms of weights grow later, their ranks stay"


def test_one_name_in_three_roles(serve: Any, directory: Path) -> None:
    served = serve("--data", str(directory / "data"))
    weight = torch.randn(16, 12)
    with Client("roles", served.url, max_overhead=None) as client:
        for step in range(3):
            also = {"w": ("gradient", weight * 2**step), "h": torch.randn(2, 8, 6)}
            receipt = client.push({"w": weight}, step, also=also)
            assert receipt.num_queued == 3 and receipt.skipped == {}
            assert client.push_measurements({"w": {"effective_rank": 2.0 + step}}, step, role="update").num_queued == 1
            assert client.flush(WAIT_SECONDS)
    assert served.stop() == 0
    rows = rows_of(directory / "data", "roles")
    found = {(row["layer"], row["role"], row["step"]): row for row in rows}
    expected = itertools.product([("w", "weight"), ("w", "gradient"), ("h", "feature"), ("w", "update")], range(3))
    assert sorted(found) == sorted((*key, step) for key, step in expected) and len(rows) == len(found)
    assert found["w", "gradient", 2]["spectral_norm"] == pytest.approx(4 * found["w", "weight", 2]["spectral_norm"])
    assert (found["h", "feature", 0]["rows"], found["h", "feature", 0]["cols"]) == (16, 6)
    assert (found["w", "update", 2]["effective_rank"], found["w", "update", 2]["method"]) == (4.0, "reported")
    assert {row["role"] for row in rows_of(directory / "data", "roles", "--role", "gradient")} == {"gradient"}


def test_what_is_reported_is_recorded_once_and_in_order_though_the_daemon_is_killed(
    serve: Any, directory: Path
) -> None:
    data = str(directory / "data")
    first = serve("--data", data)
    layers = [f"h.{i}" for i in range(4)]

    def report(client: Client, steps: range) -> None:
        for step in steps:
            low = 60.0 if step < 220 else 20.0
            numbers = {layer: {"effective_rank": low, "spectral_norm": 1.0, "loss": float(step)} for layer in layers}
            assert client.push_measurements(numbers, step).num_queued == len(layers)

    with Client("own", first.url, strict=True) as client:
        report(client, range(1, 150))
        assert client.flush(WAIT_SECONDS)
        report(client, range(150, 200))
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
        report(client, range(200, 240))
        second = serve("--data", data, url=first.url)
        with subscribe(second.url, timeout=WAIT_SECONDS) as live:
            report(client, range(240, 260))
            assert client.flush(WAIT_SECONDS)
            fired = (alert for alert in live if alert["state"] == "firing")  # one may settle before another falls
            alerts = list(itertools.islice(fired, len(layers)))
    assert second.stop() == 0
    rows = rows_of(directory / "data", "own")
    assert {layer: [row["step"] for row in rows if row["layer"] == layer] for layer in layers} == {
        layer: list(range(1, 260)) for layer in layers
    }
    assert all(row["loss"] == row["step"] for row in rows)
    assert {(alert["layer"], alert["rule"]) for alert in alerts} == {(layer, "effective_rank_drop") for layer in layers}


def test_reports_and_snapshots_of_one_layer_keep_their_order(serve: Any) -> None:
    url, weight = serve().url, torch.randn(900, 900)  # takes long enough to be overtaken
    steps = range(40)
    with (
        subscribe(url, streams=("measurement", "alert"), timeout=WAIT_SECONDS) as items,
        Client("mixed", url, max_overhead=None, strict=True) as client,
    ):
        for step in steps:
            if step % 10:
                client.push_measurements({"w": {"effective_rank": 500.0}}, step)
            else:
                client.push({"w": weight}, step)
        assert client.flush(WAIT_SECONDS)
        client.push_measurements({"w": {"effective_rank": 500.0}}, len(steps))
        seen = list(itertools.takewhile(lambda item: item["step"] != len(steps), items))
    assert [item.get("rule") for item in seen] == [None] * len(seen), "nothing went back"
    taken = [item["step"] for item in seen]
    assert taken == sorted(taken) and set(taken) >= {step for step in steps if step % 10} | {30}


PROCESS = """
import sys, torch, torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from rankd_client import Client
url, meet, process = sys.argv[1], sys.argv[2], int(sys.argv[3])
dist.init_process_group("gloo", f"file://{meet}", rank=process, world_size=2)
mesh = init_device_mesh("cpu", (2,))
ones = torch.outer(torch.ones(16), torch.ones(8))  # of norm sqrt(128)
weight = torch.nn.Parameter(distribute_tensor(ones.bfloat16(), mesh, [Shard(0)]))
weight.main_param = distribute_tensor(3 * ones, mesh, [Shard(0)])
also = {"w": ("gradient", distribute_tensor(5 * ones, mesh, [Shard(1)])), "h": (7 + process) * torch.ones(2, 8, 8)}
with Client("job", url, max_overhead=None, strict=True, echo=False, source="master") as client:
    skipped = client.push({"w": weight}, 0, also=also).skipped
    assert skipped == ({"h (feature)": "replica"} if process else {}), skipped
    assert client.flush(60.0)
    dist.barrier()
dist.destroy_process_group()
"""


def test_in_a_sharded_job_gradients_and_masters_are_assembled_and_process_0_has_the_features(
    serve: Any, directory: Path
) -> None:
    url = serve().url
    with subscribe(url, streams=("measurement",), timeout=2 * WAIT_SECONDS) as items:
        command = [sys.executable, "-c", PROCESS, url, str(directory / "meet")]
        job = [fork_server.Popen([*command, str(process)]) for process in range(2)]
        rows = list(itertools.islice(items, 3))
        assert [process.wait(60) for process in job] == [0, 0]
    norms = {(row["layer"], row["role"], row["source_dtype"]): row["spectral_norm"] for row in rows}
    assert norms == {
        ("w", "weight", "float32"): pytest.approx(3 * 128**0.5, rel=1e-4),
        ("w", "gradient", "float32"): pytest.approx(5 * 128**0.5, rel=1e-4),
        ("h", "feature", "float32"): pytest.approx(7 * 128**0.5, rel=1e-4),
    }
