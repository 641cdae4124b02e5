"""Names and places that Megatron's attributes, and what a user gives, tell of a process's parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from rankd_client import MegatronAdapter, Place
from rankd_client.wire import Shard


def parallel(*shape: int, dim: int, stride: int = 1) -> nn.Parameter:
    """As megatron.core.tensor_parallel marks it."""
    parameter = nn.Parameter(torch.arange(float(torch.Size(shape).numel())).view(shape))
    for name, value in (("tensor_model_parallel", True), ("partition_dim", dim), ("partition_stride", stride)):
        setattr(parameter, name, value)
    return parameter


def placed(adapter: MegatronAdapter, name: str, tensor: Any) -> Place:
    place = adapter.place(name, tensor)
    assert isinstance(place, Place), place
    return place


@pytest.mark.parametrize(
    ("dim", "stride", "shape", "rectangles"),
    [
        (0, 1, (12, 6), ((4, 8, 0, 6),)),
        (1, 1, (4, 18), ((0, 4, 6, 12),)),
        (0, 2, (12, 6), ((2, 4, 0, 6), (8, 10, 0, 6))),
        (1, 2, (4, 18), ((0, 4, 3, 6), (0, 4, 12, 15))),
    ],
)
def test_a_part_along_its_dimension_in_its_strides(dim: int, stride: int, shape: Any, rectangles: Any) -> None:
    adapter = MegatronAdapter(tensor_process_rank=1, tensor_size=3, replica=2)
    weight = parallel(4, 6, dim=dim, stride=stride)
    place = placed(adapter, "w", weight)
    assert (place.shape, place.shard, place.num_shards) == (shape, Shard(rectangles=rectangles), 3)
    assert (place.replica, place.group) == (2, "layers × 3")
    at = 0
    for r0, r1, c0, c1 in rectangles:
        size = (r1 - r0) * (c1 - c0)
        values = place.tensor.detach().reshape(-1)[at : at + size].view(r1 - r0, c1 - c0)
        rows = slice(None) if dim else slice(at // 6, at // 6 + r1 - r0)
        cols = slice(at // 4, at // 4 + c1 - c0) if dim else slice(None)
        assert torch.equal(values, weight.detach()[rows, cols])
        at += size


def test_what_is_whole_is_pushed_by_the_first_process_of_its_group() -> None:
    replicas = [
        placed(MegatronAdapter(tensor_process_rank=at, tensor_size=2, replica=copy), "router", torch.ones(4, 4)).replica
        for copy in range(2)
        for at in range(2)
    ]
    assert replicas == [0, 1, 2, 3]
    assert placed(MegatronAdapter(), "router", torch.ones(4, 4)).replica == 0


def test_numbers_of_layers_and_experts_become_global() -> None:
    adapter = MegatronAdapter(first_layer=24, first_expert=16, expert_replica=1)
    names = {
        "decoder.layers.3.mlp.linear_fc1.weight": "decoder.layers.27.mlp.linear_fc1.weight",
        "decoder.layers.0.mlp.experts.local_experts.2.linear_fc2.weight": (
            "decoder.layers.24.mlp.experts.local_experts.18.linear_fc2.weight"
        ),
        "decoder.layers.0.mlp.experts.linear_fc1.weight5": "decoder.layers.24.mlp.experts.linear_fc1.weight21",
        "embedding.word_embeddings.weight": "embedding.word_embeddings.weight",
    }
    for name, expected in names.items():
        place = placed(adapter, name, torch.ones(4, 4))
        assert place.name == expected and place.replica == (1 if "experts" in name else 0)


def test_patterns_of_another_model() -> None:
    adapter = MegatronAdapter(
        first_layer=4, layer_pattern=r"^h\.(\d+)\.", expert_pattern=r"ffn\.e(\d+)\.", first_expert=8
    )
    assert placed(adapter, "h.1.ffn.e2.up", torch.ones(2, 2)).name == "h.5.ffn.e10.up"


def test_experts_that_one_name_has_in_all_processes_are_left_out() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    weight.allreduce = False  # type: ignore[attr-defined]
    assert MegatronAdapter().place("mlp.experts.weight1", weight) == "experts without a number in their name"


def test_experts_are_split_among_other_processes_than_layers() -> None:
    adapter = MegatronAdapter(
        tensor_process_rank=1, tensor_size=2, expert_tensor_process_rank=0, expert_tensor_size=1, first_expert=0
    )
    assert placed(adapter, "local_experts.0.w", parallel(4, 6, dim=0)).shard.whole
    assert not placed(adapter, "w", parallel(4, 6, dim=0)).shard.whole


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"replica": -1}, "replica=-1: expected an integer of at least 0"),
        ({"first_layer": 1.5}, "first_layer=1.5: expected an integer of at least 0"),
        ({"first_expert": True}, "first_expert=True: expected an integer of at least 0"),
        ({"tensor_size": 2}, "tensor_process_rank=None, tensor_size=2: expected both"),
        ({"tensor_process_rank": 2, "tensor_size": 2}, "expected both, integers from 0, the first below the second"),
        ({"expert_tensor_process_rank": 1}, "expert_tensor_process_rank=1, expert_tensor_size=None: expected both"),
        ({"layer_pattern": "layers"}, "layer_pattern='layers': expected a regular expression with a group"),
        ({"expert_pattern": "("}, "expert_pattern='(': expected a regular expression"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        MegatronAdapter(**arguments)
    assert said in str(caught.value)
