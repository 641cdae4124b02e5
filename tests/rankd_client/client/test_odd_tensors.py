"""Tensors that are not what one thinks of first: their values are copied as they are seen, or there is a reason."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from absent_daemon import Make
from queued import queued
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from rankd_client import Place
from rankd_client.wire import Shard

LARGE = (1 << 16, 1 << 15)
"""2**31 elements."""


def test_views_of_one_memory_are_copied_each_as_it_is_seen(make: Make) -> None:
    base = torch.arange(64.0).view(8, 8)
    model = {
        "whole": base,
        "transposed": base.t(),
        "columns": base[:, ::2],
        "rows": base[::2],
        "part": base[2:6, 1:5],
        "expanded": base[0].expand(16, 8),
        "diagonal": base.as_strided((4, 4), (9, 1)),
        "flipped": base.flip(0),
        "channels_last": torch.arange(96.0).view(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "conjugate": torch.complex(base, base).conj().real,
        "negative": torch.complex(base, base).conj().imag,
    }
    client = make()
    assert client.push(model).num_queued == len(model)
    copies = queued(client)
    for name, tensor in model.items():
        assert torch.equal(copies[name], tensor.bfloat16()), name


def test_an_expanded_tensor_takes_what_it_shows(make: Make) -> None:
    assert make().push({"w": torch.ones(1, 8).expand(32, 8)}).wire_bytes == 2 * 32 * 8


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_sizes_beyond_31_bits(make: Make, dtype: str) -> None:
    """None of it is allocated: it is larger than a push may be."""
    client = make(dtype=dtype)
    with FakeTensorMode():
        fake = torch.empty(LARGE)
    model = {
        "fake": fake,
        "meta": torch.empty(LARGE, device="meta"),
        "expanded": torch.ones(1, 1).expand(LARGE),
        "beyond": torch.ones(1, 1).expand(1 << 24, 1 << 24),
        "small": torch.ones(4, 4),
    }
    receipt = client.push(model)
    assert receipt.num_queued == 1 and client.num_errors == 0
    reasons = {"fake": "fake", "meta": "meta", "expanded": "larger than max_push_bytes", "beyond": "too many elements"}
    assert receipt.skipped == reasons
    assert client._pusher is not None and client._pusher._outbox.arena.num_bytes < 1 << 20


def test_a_part_of_nothing_in_a_process_by_itself(make: Make) -> None:
    class Empty:
        def place(self, name: str, tensor: torch.Tensor) -> Place | None:
            nothing = Shard(ranges=((24, 24),))
            return Place(name, torch.ones(0), (4, 6), nothing, replica=0) if name == "w" else None

    receipt = make(adapters=[Empty()]).push({"w": torch.ones(4, 6), "other": torch.ones(4, 6)})
    assert receipt.num_queued == 1 and receipt.skipped == {"w": "other processes hold all of it"}


def test_a_model_of_meta_tensors_alone(make: Make) -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    receipt = make().push(module)
    assert receipt.num_queued == 0 and {receipt.skipped[f"{i}.weight"] for i in range(2)} == {"meta"}


def test_parameters_on_several_devices(make: Make) -> None:
    client = make()
    module = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8, device="meta"), nn.Linear(8, 8)])
    receipt = client.push(module)
    assert receipt.num_queued == 2 and receipt.skipped["1.weight"] == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_parameters_on_the_host_and_on_gpus(make: Make) -> None:
    client = make()
    devices = [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]
    module = nn.ModuleList(nn.Linear(64, 64, device=device) for device in devices)
    for _ in range(3):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(1.0)
        expected = {f"{i}.weight": layer.weight.detach().bfloat16().cpu() for i, layer in enumerate(module)}
        assert client.push(module).num_queued == len(devices)
        torch.cuda.synchronize()
        copies = queued(client)
        assert all(torch.equal(copies[name], weight) for name, weight in expected.items())
    assert client.num_errors == 0


ODD: dict[str, Callable[[], torch.Tensor]] = {
    "sparse": lambda: torch.ones(4, 4).to_sparse(),
    "csr": lambda: torch.ones(4, 4).to_sparse_csr(),
    "mkldnn": lambda: torch.ones(4, 4).to_mkldnn(),
    "nested": lambda: torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)]),
    "complex": lambda: torch.ones(4, 4, dtype=torch.complex64),
    "bool": lambda: torch.ones(4, 4, dtype=torch.bool),
    "empty": lambda: torch.ones(4, 0),
    "nine_dimensions": lambda: torch.ones(*[1] * 9),
}


@pytest.mark.parametrize("kind", ODD)
@pytest.mark.filterwarnings("ignore")  # torch's, of formats that are in beta
def test_what_cannot_be_pushed_has_a_reason_and_costs_the_others_nothing(make: Make, kind: str) -> None:
    client = make()
    receipt = client.push({"odd": ODD[kind](), "plain": torch.ones(4, 4)})
    assert receipt.num_queued == 1 and receipt.skipped["odd"] and client.num_errors == 0


def test_weights_that_another_thread_has_freed(make: Make) -> None:
    """As sharding frameworks do between steps: the tensor is there, its memory is not."""
    client, module = make(strict=False), nn.Linear(64, 64)
    client.push(module)
    module.weight.untyped_storage().resize_(0)
    receipt = client.push(module)
    assert receipt.num_queued == 0 and "weight" in receipt.skipped, receipt
    module.weight.untyped_storage().resize_(4 * 64 * 64)
    assert client.push(module).num_queued == 1
