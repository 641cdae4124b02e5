"""What stands for a weight, through a real daemon: its float32 master, or the values of a quantised one."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import torch
from torch import nn

from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 30.0


class MasterSgd(torch.optim.SGD):
    """Mixed precision by hand: the float32 copy takes the steps, and the weight is rounded from it."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        for group in self.param_groups:
            for weight in group["params"]:
                state = self.state[weight]
                if "master_param" not in state:
                    state["master_param"] = weight.float()
                state["master_param"].add_(weight.grad.float(), alpha=-group["lr"])
                weight.copy_(state["master_param"])


def low_rank(rows: int, cols: int) -> torch.Tensor:
    """Of rank 8 exactly."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(rows, 8, generator=generator) @ torch.randn(8, cols, generator=generator) / 10


def first_row(items: Iterator[Any], client: Client, model: nn.Module) -> Any:
    """A subscription begins when it is connected, which may be after a push: others follow until one is heard of."""
    heard = threading.Event()

    def push() -> None:
        for step in count(1):
            if heard.wait(1.0):
                return
            client.push(model, step)

    pushing = threading.Thread(target=push)
    pushing.start()
    try:
        return next(items)
    finally:
        heard.set()
        pushing.join()


def test_the_master_shows_the_rank_that_rounding_hides(serve: Any, capfd: pytest.CaptureFixture[str]) -> None:
    """Of a matrix of rank 8 the bfloat16 weight reads higher, with rounding's noise spread over all directions."""
    url, found = serve().url, {}
    for source in ("param", "master"):
        model = nn.Linear(256, 256, bias=False, dtype=torch.bfloat16)
        optimizer = MasterSgd(model.parameters(), lr=1.0)
        optimizer.state[model.weight]["master_param"] = low_rank(256, 256)
        model.weight.grad = torch.zeros_like(model.weight)
        with (
            subscribe(url, run=source, streams=("measurement",), timeout=WAIT_SECONDS) as items,
            Client(source, url, max_overhead=None, dtype="float32", source=source, strict=True) as client,
        ):
            client.attach(model, optimizer)
            optimizer.step()
            client.push(model, 0)
            found[source] = first_row(items, client, model)
            assert client.stats.num_masters == (source == "master")
    assert (found["param"]["source_dtype"], found["master"]["source_dtype"]) == ("bfloat16", "float32")
    assert found["master"]["effective_rank"] < 8.01 < 8.3 < found["param"]["effective_rank"]
    assert found["master"]["stable_rank"] == pytest.approx(found["param"]["stable_rank"], rel=1e-2)
    assert "1 of 1 tensors watched (1 of them float32 masters)" in capfd.readouterr().err


def test_quantised_weights_are_measured_by_their_values(serve: Any) -> None:
    quantization = pytest.importorskip("torchao.quantization")
    model = nn.Sequential(nn.Linear(256, 64, bias=False))
    values = model[0].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    url = serve().url
    with (
        subscribe(url, streams=("measurement",), timeout=WAIT_SECONDS) as items,
        Client("int8", url, max_overhead=None, strict=True) as client,
    ):
        receipt = client.push(model, 0)
        row = first_row(items, client, model)
    assert receipt.num_queued == 1 and receipt.device_bytes == 64 * 256 * 4
    assert (row["source_dtype"], row["wire_dtype"], row["rows"], row["cols"]) == ("int8", "bfloat16", 64, 256)
    assert row["source_noise_floor"] > 0
    sigma = torch.linalg.svdvals(values.double())
    assert row["spectral_norm"] == pytest.approx(float(sigma[0]), rel=1e-2)
