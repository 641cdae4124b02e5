"""Two models and one client: of what is handed over second at a step nothing goes, and somebody hears of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pytest
import torch
from absent_daemon import Make
from torch import nn

Model = nn.Module | Mapping[str, torch.Tensor]


def module() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


def named(prefix: str, model: nn.Module) -> dict[str, torch.Tensor]:
    """Made anew for each push, at an address that one that is gone may have had."""
    return {f"{prefix}.{name}": tensor for name, tensor in model.named_parameters()}


def told(capfd: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capfd.readouterr().err.splitlines() if "model" in line]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (lambda model: model, lambda model: model),
        (lambda model: named("g", model), lambda model: named("d", model)),
        (lambda model: model, lambda model: named("d", model)),
        (lambda model: named("g", model), lambda model: model),
    ],
    ids=["modules", "mappings", "a module and a mapping", "a mapping and a module"],
)
def test_a_second_model_at_the_same_step_is_told_of_once(
    make: Make,
    capfd: pytest.CaptureFixture[str],
    first: Callable[[nn.Module], Model],
    second: Callable[[nn.Module], Model],
) -> None:
    client, generator, discriminator = make(), module(), module()
    for step in range(5):
        assert client.push(first(generator), step).num_queued == 2
        assert client.push(second(discriminator), step).num_queued == 0
    (line,) = told(capfd)
    assert line == (
        "rankd: another model at step 0 is not pushed, as one was at that step: push one mapping of both, "
        "with names of their own, or give each a client of its own"
    )


@pytest.mark.parametrize("options", [{}, {"max_overhead": 1e-9}], ids=["no limit", "over the budget"])
@pytest.mark.parametrize("view", [lambda model: model, lambda model: named("g", model)], ids=["module", "mapping"])
def test_the_same_model_again_is_no_other(
    make: Make,
    capfd: pytest.CaptureFixture[str],
    view: Callable[[nn.Module], Model],
    options: dict[str, float],
) -> None:
    client, model = make(**options), module()
    for step in range(3):
        for _ in range(2):
            client.push(view(model), step)
    assert told(capfd) == []


def test_both_go_in_one_mapping_or_at_other_steps(make: Make, capfd: pytest.CaptureFixture[str]) -> None:
    client, generator, discriminator = make(), module(), module()
    for step in range(3):
        assert client.push(named("g", generator) | named("d", discriminator), step).num_queued == 4
    for step in range(3, 9):
        model = named("g", generator) if step % 2 else named("d", discriminator)
        assert client.push(model, step).num_queued == 2
    assert told(capfd) == []


def test_in_a_job_of_several_processes_both_go_at_one_step(
    make: Make, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    client, generator, discriminator = make(), module(), module()
    client.push(named("g", generator), 0)
    for step in range(1, 4):
        for model in (named("g", generator), named("d", discriminator)):
            assert client.push(model, step).num_queued == 2
    assert told(capfd) == []
