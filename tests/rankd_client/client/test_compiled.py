"""Steps that torch.compile compiles: their graphs are the user's alone, and each push is made."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from absent_daemon import Make
from torch import nn

NUM_STEPS = 6


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class Counting:
    """The eager backend, and how many calls each graph that it was given has."""

    def __init__(self) -> None:
        self.graphs: list[int] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: Any) -> Callable[..., Any]:
        self.graphs.append(sum(node.op.startswith("call") for node in graph.graph.nodes))
        return graph.forward


def train(after_step: Callable[[nn.Module, torch.optim.Optimizer], Any] | None, *, inside: bool) -> list[int]:
    """Compile a step, with `after_step` called once before, or inside of it; returns its graphs."""
    torch.manual_seed(0)
    model = nn.Linear(8, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if after_step is not None and not inside:
        after_step(model, optimizer)

    def step() -> None:
        optimizer.step()
        if after_step is not None and inside:
            after_step(model, optimizer)

    backend = Counting()
    compiled = torch.compile(step, backend=backend)
    for _ in range(NUM_STEPS):
        model(torch.ones(2, 8)).sum().backward()
        compiled()
        optimizer.zero_grad()
    return backend.graphs


@pytest.mark.filterwarnings("ignore")  # torch's own, as it compiles
@pytest.mark.parametrize("how", ["attached", "pushed"])
def test_nothing_of_a_push_is_in_the_graphs(make: Make, how: str) -> None:
    client = make()
    if how == "attached":
        graphs = train(lambda model, optimizer: client.attach(model, optimizer, every=1), inside=False)
    else:
        graphs = train(lambda model, optimizer: client.push(model), inside=True)
    assert client.stats.num_pushes == NUM_STEPS and client.num_errors == 0
    torch._dynamo.reset()
    assert graphs == train(None, inside=False)


def test_who_compiles_nothing_does_not_load_the_compiler() -> None:
    code = (
        "import sys, torch, rankd_client\n"  # no optimizer, which loads it itself
        "model = torch.nn.Linear(4, 4); was = 'torch._dynamo' in sys.modules\n"
        "client = rankd_client.Client('run', 'ipc:///nobody')\n"
        "client._guard(lambda: None); client.push(model); client.fence(); client.close()\n"
        "assert not was and 'torch._dynamo' not in sys.modules, was\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
