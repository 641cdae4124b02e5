"""A client beside real training on a GPU: what it takes is right, and training is as it would be without it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from rankd_client import Client
from rankd_client.snapshot import Snapshot

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PATIENCE_SECONDS = 20.0
WIDTH = 512


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """With nobody to take what it pushes."""
    with Client("run", f"ipc://{tmp_path}", max_overhead=None, dtype="float32", echo=False, strict=True) as client:
        yield client


def model_of(layers: int = 4) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers))).cuda()


def taken(client: Client) -> dict[str, torch.Tensor]:
    """What lies in the outbox, once all of it is there."""
    assert client._pusher is not None
    outbox = client._pusher._outbox
    until = time.monotonic() + PATIENCE_SECONDS
    while outbox.has_arriving:
        assert time.monotonic() < until
    with outbox._changed:
        return {snapshot.layer: read(snapshot) for snapshot in outbox._queue.values()}


def read(snapshot: Snapshot) -> torch.Tensor:
    values = torch.frombuffer(bytearray(snapshot.region.view), dtype=getattr(torch, snapshot.dtype))
    return values.view(snapshot.shape)


def train(model: nn.Module, optimizer: Any, num_steps: int, after: Any = None, scaler: Any = None) -> list[float]:
    losses = []
    generator = torch.Generator("cuda").manual_seed(1)
    for step in range(num_steps):
        batch = torch.randn(64, WIDTH, device="cuda", generator=generator)
        with torch.autocast("cuda", torch.float16) if scaler else nullcontext():
            loss = (model(batch) - batch).square().mean()
        if scaler:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        else:
            loss.backward()
            optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if after is not None:
            after(step)
        losses.append(float(loss))
    return losses


@pytest.mark.parametrize("attached", [True, False])
def test_the_snapshot_is_of_its_step_though_training_goes_on(client: Client, attached: bool) -> None:
    model = model_of()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    if attached:
        client.attach(model, optimizer)
    wanted: dict[str, torch.Tensor] = {}

    def push(step: int) -> None:
        if step in (2, 5):
            wanted.update({name: p.detach().clone() for name, p in model.named_parameters() if p.dim() > 1})
            assert client.push(model, step=step).num_queued == 4

    train(model, optimizer, 8, push)
    got = taken(client)
    assert got.keys() == wanted.keys()
    assert all(torch.equal(got[name], wanted[name].cpu()) for name in wanted)


@pytest.mark.parametrize("kind", ["plain", "scaler", "compiled"])
def test_training_is_as_it_would_be_without(tmp_path: Path, kind: str) -> None:
    losses = []
    torch.use_deterministic_algorithms(True)
    try:
        for watched in (False, True):
            model = model_of()
            trained = torch.compile(model) if kind == "compiled" else model
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
            scaler = torch.amp.GradScaler("cuda", init_scale=2.0**40) if kind == "scaler" else None  # skips steps first
            with Client("run", f"ipc://{tmp_path}", max_overhead=None, echo=False, strict=True) as client:
                if watched:
                    client.attach(trained, optimizer, every=2)
                losses.append(train(trained, optimizer, 20, scaler=scaler))
                assert client.stats.num_pushes == (0 if not watched else client.stats.num_due)
                assert (client.stats.num_pushes > 0) == watched
            losses[-1].append(float(torch.rand(1, device="cuda")))  # and random states
    finally:
        torch.use_deterministic_algorithms(False)
    assert losses[0] == losses[1]


def test_while_a_graph_is_captured_nothing_is_pushed_and_replays_are(client: Client) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    client.attach(model, optimizer)
    batch = torch.randn(64, WIDTH, device="cuda")

    def step() -> None:
        optimizer.zero_grad(set_to_none=False)
        model(batch).square().mean().backward()
        optimizer.step()

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
            client.push(model)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
        receipt = client.push(model)
    assert receipt.num_queued == 0 and set(receipt.skipped.values()) == {"a CUDA graph is being captured"}
    for _ in range(5):
        graph.replay()
        wanted = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() > 1}
        assert client.push(model).num_queued == 4
        for _ in range(3):  # no hook runs in a replay
            graph.replay()
        got = taken(client)
        assert all(torch.equal(got[name], wanted[name].cpu()) for name in wanted)


def test_what_is_freed_and_what_changes_after_a_fence(client: Client) -> None:
    model = model_of()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    client.attach(model, optimizer)
    train(model, optimizer, 1)
    wanted = {name: p.detach().clone() for name, p in model.named_parameters() if p.dim() > 1}
    client.push(model)
    client.fence()
    with torch.no_grad():
        for p in model.parameters():
            p.zero_()
    got = taken(client)
    assert all(torch.equal(got[name], wanted[name].cpu()) for name in wanted)
    before = torch.cuda.memory_allocated()
    del model, optimizer, wanted
    assert torch.cuda.memory_allocated() < before - 4 * WIDTH * WIDTH * 4


def test_device_memory_is_what_the_receipt_says(client: Client) -> None:
    model = model_of()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    receipt = client.push(model)
    taken(client)
    held = torch.cuda.memory_allocated() - before
    assert held <= receipt.device_bytes + (1 << 20) and receipt.device_bytes == client.stats.device_bytes > 0
    for _ in range(5):
        client.push(model)
        taken(client)
        assert torch.cuda.memory_allocated() - before == held


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_parameters_on_several_devices(client: Client) -> None:
    model = nn.Sequential(nn.Linear(8, 8).cuda(0), nn.Linear(8, 8).cuda(1), nn.Linear(8, 8))
    for step in range(3):
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(step)
        assert client.push(model, step=step).num_queued == 3
        assert {float(value.unique()) for value in taken(client).values()} == {float(step)}
