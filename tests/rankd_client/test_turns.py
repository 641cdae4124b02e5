"""What goes with a push: what is remembered for it has a bound, however many names there are."""

from __future__ import annotations

import torch

from rankd_client.turns import MAX_OTHERS, Turns
from rankd_client.watch import Watched


def layers(*names: str) -> list[Watched]:
    tensor = torch.ones(2, 2)
    return [Watched(name, tensor, (2, 2), "float32", "bfloat16", 8, False, False) for name in names]


def push(turns: Turns, watched: list[Watched], max_bytes: int) -> list[str]:
    chosen = turns.choose(watched, {}, max_bytes, turn=None, again=False, refused={})
    turns.pushed([item.name for item in chosen])
    turns.remember(watched, (), again=False, budget=False)
    return [item.name for item in chosen]


def test_names_that_are_new_for_ever_do_not_pile_up() -> None:
    turns = Turns(1 << 20, 1 << 20)
    for number in range(40):
        assert len(push(turns, layers(*(f"{number}.{i}" for i in range(200))), 1 << 20)) == 200
        assert len(turns._last_push.table()) <= 2 * MAX_OTHERS + 200


def test_of_two_models_pushed_in_turn_no_layer_starves() -> None:
    turns = Turns(8, 1 << 20)
    here, there = layers("a", "b", "c"), layers("d", "e", "f")
    assert [push(turns, model, 8) for _ in range(3) for model in (here, there)] == [[name] for name in "adbecf"]
