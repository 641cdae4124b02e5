"""How often a layer went back, for each by itself and within bounds."""

from __future__ import annotations

import pytest

from rankd_client import returns as module
from rankd_client.returns import Returns


def count(returns: Returns, *steps: int, layer: str = "w", role: str = "weight") -> list[int]:
    return [returns.count((layer, role), step) for step in steps]


def test_a_step_that_is_no_later_one_is_a_return_of_its_layer_alone() -> None:
    returns = Returns()
    assert count(returns, 10, 20, 30, 20, 30, 30, 40) == [0, 0, 0, 1, 1, 2, 2]
    assert count(returns, 5, 6, layer="v") == [0, 0] and count(returns, 5, role="feature") == [0]
    assert count(returns, 20) == [3]


def test_a_layer_that_was_forgotten_begins_where_none_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINES", 2)
    returns = Returns()
    assert count(returns, 3, 2, 1) == [0, 1, 2] and count(returns, 1, layer="v") == [0]
    assert count(returns, 1, layer="u") == [3] and count(returns, 1, 0) == [3, 4]
