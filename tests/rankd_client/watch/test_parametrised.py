"""Weights that are computed from other parameters: watched as what the model multiplies with."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from rankd_client.watch import Selection, Watched, watch

Norm = Callable[[nn.Module], nn.Module]


def old(norm: Any, **options: Any) -> Norm:
    def apply(module: nn.Module) -> nn.Module:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            normed: nn.Module = norm(module, **options)
        return normed

    return apply


NORMS: dict[str, Norm] = {
    "weight_norm": parametrizations.weight_norm,
    "weight_norm of all": lambda module: parametrizations.weight_norm(module, dim=None),  # type: ignore[arg-type]
    "spectral_norm": parametrizations.spectral_norm,
    "old weight_norm": old(nn.utils.weight_norm),
    "old weight_norm, dim 1": old(nn.utils.weight_norm, dim=1),
    "old spectral_norm": old(nn.utils.spectral_norm),
}
MODULES = {
    "linear": lambda: nn.Linear(6, 4),
    "conv": lambda: nn.Conv2d(3, 4, 3),
    "transposed": lambda: nn.ConvTranspose1d(3, 4, 3),
}
INPUTS = {"linear": (5, 6), "conv": (1, 3, 8, 8), "transposed": (1, 3, 8)}


def trained(norm: Norm, kind: str) -> nn.Sequential:
    """Two steps, so that what the weight is made of has moved."""
    torch.manual_seed(0)
    model = nn.Sequential(norm(MODULES[kind]()))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(2):
        model(torch.randn(INPUTS[kind])).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def effective(model: nn.Sequential, kind: str) -> torch.Tensor:
    """What the module multiplies with in evaluation, where nothing but the weight is computed anew."""
    model.eval()
    with torch.no_grad():
        model(torch.randn(INPUTS[kind]))
        weight: torch.Tensor = model[0].weight  # type: ignore[assignment]
        return weight.clone()


def look(model: nn.Module) -> tuple[dict[str, Watched], dict[str, str]]:
    with torch.no_grad():
        watched, skipped = watch(model, Selection())
    return {item.name: item for item in watched}, skipped


@pytest.mark.parametrize("kind", MODULES)
@pytest.mark.parametrize("norm", NORMS.values(), ids=NORMS)
def test_the_weight_that_the_model_uses_is_watched_under_its_name_and_nothing_changes(norm: Norm, kind: str) -> None:
    model = trained(norm, kind)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    watched, skipped = look(model)
    assert list(watched) == ["0.weight"]
    item = watched["0.weight"]
    with torch.no_grad():
        values = item.values()
    after = model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert item.shape == values.shape and item.decoded_bytes == 4 * values.numel()
    assert torch.allclose(values, effective(model, kind), rtol=1e-5, atol=1e-7)
    parts = {name: reason for name, reason in skipped.items() if "weight_norm" in reason}
    assert set(parts.values()) <= {"a part of 0.weight (weight_norm)"} and len(parts) <= 1


def test_the_weight_of_the_next_step_is_told_without_looking_again() -> None:
    model = trained(parametrizations.weight_norm, "linear")
    item = look(model)[0]["0.weight"]
    with torch.no_grad():
        model[0].parametrizations.weight.original0.mul_(3)  # type: ignore[union-attr, operator]
        assert torch.allclose(item.values(), effective(model, "linear"))


class Double(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        raise AssertionError("somebody's parametrisation was computed")


def test_what_is_not_known_keeps_its_own_name_and_is_not_computed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    parametrize.register_parametrization(model[0], "weight", Double(), unsafe=True)
    parametrizations.orthogonal(model[1])
    watched, skipped = look(model)
    names = [f"{i}.parametrizations.weight.original" for i in range(2)]
    assert set(names) <= watched.keys() and "2.weight" in watched
    assert all("fewer than 2" in reason for reason in skipped.values())


def test_a_weight_beside_what_it_is_made_of_is_refused_with_both_names() -> None:
    model = nn.Module()
    model.a = parametrizations.weight_norm(nn.Linear(3, 3, bias=False))
    model.register_module("_orig_mod", nn.ModuleDict({"a": nn.Linear(3, 3, bias=False)}))
    watched, skipped = look(model)
    assert not watched
    both = "'a.parametrizations.weight.original1' and '_orig_mod.a.weight' are both called 'a.weight'"
    assert set(skipped.values()) - {"a part of a.weight (weight_norm)"} == {both}
