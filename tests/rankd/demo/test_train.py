import json
from typing import Any

import pytest
import torch

from rankd.demo.model import Transformer
from rankd.demo.text import VOCABULARY
from rankd.demo.train import Fault, PushTotals, TrainConfig, build_optimizer, parse_arguments, summarize, train
from rankd_client import PushReceipt

CHARACTERS = (torch.arange(5000) ** 2 // 7) % VOCABULARY
STEPS = 48
CAUSE_STEP = STEPS * 7 // 12


def small(healthy: bool = True, seed: int = 0) -> TrainConfig:
    return TrainConfig(steps=STEPS, warmup_steps=12, seed=seed, healthy=healthy, batch_size=2, context=16)


def ignore(*_: Any) -> None:
    pass


def weights(model: Transformer) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_training_learns_and_reports_every_step() -> None:
    seen: list[tuple[int, float]] = []
    losses = train(CHARACTERS, small(), lambda step, model, loss: seen.append((step, loss)), ignore)
    assert seen == list(enumerate(losses, start=1))
    assert losses[0] == pytest.approx(4.6, abs=0.4)  # ln 96: knows nothing
    assert sum(losses[-10:]) / 10 < losses[0] - 0.5


def test_a_watcher_changes_nothing_even_one_that_draws_random_numbers() -> None:
    unwatched = train(CHARACTERS, small(), ignore, ignore)
    watched = train(CHARACTERS, small(), lambda step, model, loss: [weights(model), torch.rand(3)], ignore)
    assert watched == unwatched


def test_the_seed_decides() -> None:
    assert train(CHARACTERS, small(seed=1), ignore, ignore) != train(CHARACTERS, small(seed=2), ignore, ignore)


def test_the_fault_sets_the_weight_decay_of_one_group_and_nothing_else() -> None:
    config = small()
    optimizer = build_optimizer(Transformer(VOCABULARY, config.context), config)
    before = {group["name"]: {key: group[key] for key in group if key != "params"} for group in optimizer.param_groups}
    fault = Fault(step=1)
    assert fault.apply(optimizer) == "weight_decay 0.1 -> 10"
    after = {group["name"]: {key: group[key] for key in group if key != "params"} for group in optimizer.param_groups}
    assert after.pop(fault.layer) == {**before.pop(fault.layer), "weight_decay": 10.0}
    assert after == before


def test_every_group_holds_one_parameter_and_only_matrices_decay() -> None:
    config = small()
    model = Transformer(VOCABULARY, config.context)
    groups = build_optimizer(model, config).param_groups
    assert [(group["name"], *map(id, group["params"])) for group in groups] == [
        (name, id(parameter)) for name, parameter in model.named_parameters()
    ]
    assert {(group["params"][0].ndim > 1, group["weight_decay"]) for group in groups} == {(True, 0.1), (False, 0.0)}


def test_a_fault_in_a_layer_that_is_not_there_is_refused() -> None:
    config = small()
    optimizer = build_optimizer(Transformer(VOCABULARY, config.context), config)
    with pytest.raises(ValueError, match=r"fault layer is 'blocks.9.up.weight', expected one of .*blocks.1.up.weight"):
        Fault(step=1, layer="blocks.9.up.weight").apply(optimizer)


def test_the_two_trainings_are_one_until_the_cause_and_differ_in_one_layer_at_it() -> None:
    models: dict[bool, dict[str, torch.Tensor]] = {}
    losses: dict[bool, list[float]] = {}
    causes: list[tuple[Fault, str]] = []
    for healthy in (True, False):

        def keep(step: int, model: Transformer, loss: float, healthy: bool = healthy) -> None:
            if step == CAUSE_STEP:
                models[healthy] = weights(model)

        losses[healthy] = train(CHARACTERS, small(healthy), keep, lambda *cause: causes.append(cause))
    assert losses[True][:CAUSE_STEP] == losses[False][:CAUSE_STEP]
    assert losses[True][CAUSE_STEP:] != losses[False][CAUSE_STEP:]
    changed = [name for name in models[True] if not torch.equal(models[True][name], models[False][name])]
    assert changed == [Fault(step=1).layer]
    assert causes == [(Fault(step=CAUSE_STEP), "weight_decay 0.1 -> 10")]


def test_receipts_add_up() -> None:
    totals = PushTotals()
    totals.add(PushReceipt(10, num_queued=3, wire_bytes=100, blocked_seconds=0.25))
    totals.add(PushReceipt(11, blocked_seconds=0.125))
    totals.add(PushReceipt(20, num_queued=2, num_replaced=2, num_dropped=1, wire_bytes=100, blocked_seconds=0.25))
    assert totals == PushTotals(
        num_pushes=2, num_layers=3, num_replaced=2, num_dropped=1, wire_bytes=200, blocked_seconds=0.625
    )


def test_the_summary_averages_the_loss_on_both_sides_of_the_cause() -> None:
    config = TrainConfig(steps=1200)  # the cause comes at 700: its index is 699
    losses = [5.0] + [4.0] * 498 + [3.0] * 200 + [2.0] * 200 + [1.5] * 101 + [1.0] * 200
    row = summarize(config, losses, 2.0, PushTotals())
    assert len(losses) == row["steps"] == 1200
    assert (row["cause_step"], row["cause_layer"]) == (700, "blocks.1.down.weight")
    assert (row["loss_first"], row["loss_before_cause"], row["loss_after_cause"], row["loss_final"]) == (5, 3, 2, 1)
    assert json.loads(json.dumps(row)) == row


def test_a_healthy_summary_has_no_cause() -> None:
    row = summarize(TrainConfig(steps=100, healthy=True), [1.0] * 100, 1.0, PushTotals())
    cause_keys = ("cause_step", "cause_layer", "loss_before_cause", "loss_after_cause")
    assert [row[key] for key in cause_keys] == [None] * 4


def test_arguments_become_a_config() -> None:
    arguments, config = parse_arguments(["--run", "r", "--healthy", "--steps", "300", "--seed", "7"])
    assert (arguments.run, arguments.url, arguments.every_steps) == ("r", None, 10)
    assert config == TrainConfig(steps=300, seed=7, healthy=True)
    assert config.fault is None


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        ([], "--run"),
        (["--run", "r", "--steps", "99"], "steps is 99, expected at least the 100 of the warm-up"),
        (["--run", "r", "--steps", "many"], "invalid int value: 'many'"),
        (["--run", "r", "--seed", "-1"], "seed is -1, expected 0 or more"),
        (["--run", "r", "--every-steps", "0"], "--every-steps is 0, expected 1 or more"),
    ],
)
def test_wrong_arguments_are_refused_by_name(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refused:
        parse_arguments(argv)
    assert refused.value.code == 2
    assert complaint in capsys.readouterr().err
