"""Features and gradients on a GPU: copied as they were, though nobody waits for an optimizer before they change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import nn

from rankd_client import Client

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

PATIENCE_SECONDS = 20.0


@pytest.fixture
def client(tmp_path: Path) -> Iterator[Client]:
    """With nobody to take what it pushes."""
    with Client("run", f"ipc://{tmp_path}", max_overhead=None, dtype="float32", echo=False, strict=True) as client:
        yield client


def taken(client: Client) -> dict[tuple[str, str], torch.Tensor]:
    assert client._pusher is not None
    outbox = client._pusher._outbox
    until = time.monotonic() + PATIENCE_SECONDS
    while outbox.has_arriving:
        assert time.monotonic() < until
    with outbox._changed:
        return {
            key: torch.frombuffer(bytearray(snapshot.region.view), dtype=torch.float32).view(snapshot.shape)
            for key, snapshot in outbox._queue.items()
        }


def test_what_changes_or_is_freed_right_after_a_push_is_copied_as_it_was(client: Client) -> None:
    """With an attached optimizer, whose next step is what copies of weights alone wait for."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, 1024)).cuda()
    optimizer = torch.optim.AdamW(model.parameters())
    client.attach(model, optimizer)
    for step in range(20):
        features = model(torch.randn(8, 64, 1024, device="cuda"))
        features.square().mean().backward()
        optimizer.step()
        gradient = model[0].weight.grad
        expected = {
            ("f", "feature"): features.detach().flatten(0, 1).cpu(),
            ("0.weight", "gradient"): gradient.cpu(),
            ("0.weight", "weight"): model[0].weight.detach().cpu(),
        }
        client.push(
            model, step, also={"f": features.transpose(0, 1).transpose(0, 1), "0.weight": ("gradient", gradient)}
        )
        gradient.zero_()
        del features
        torch.full((8, 64, 1024), float("nan"), device="cuda")  # in the memory that the features had
        found = taken(client)
        for key, values in expected.items():
            torch.testing.assert_close(found[key], values, rtol=0, atol=0)


def test_decoding_on_a_gpu(client: Client) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(256, 64, bias=False)).cuda()
    values = model[0].weight.detach().cpu()
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    receipt = client.push(model, 0)
    assert receipt.device_bytes >= 64 * 256 * 4
    found = taken(client)["0.weight", "weight"]
    assert float((found - values).norm() / values.norm()) < 0.01
