"""The demo's trainer: a process of its own that trains, pushes its weights to the daemon, and hurts one layer.

The fault. At `Fault.step` the weight decay of one layer's parameter group goes from 0.1 to 10, as a misplaced decimal
point or a wrong pattern in a list of parameter groups does it. Nothing else changes: no weight is written by hand, and
every other group keeps its settings.

Why it collapses the weights. AdamW multiplies each weight by 1 - learning_rate · weight_decay at every step: with 0.1
a weight lasts 5,000 steps, with 10 only 50. The hurt layer forgets what it had learned together with the many
directions its random start gave it, and holds little more than the sum of its last 50 updates. Updates come from
gradients, and gradients agree on few directions: within some 200 steps the largest singular value shrinks 6-fold, the
smallest 30-fold, and the effective rank falls from 53 to 41 of 64.

What the loss shows. The residual stream carries the signal around the layer and the other layers make up for it: the
loss goes on falling and ends below where the fault met it. Only beside the healthy training of the same seed is it
seen to be higher, by 0.06 to 0.08 nats where the batches of one moment have a standard deviation of 0.17.

Run it with a daemon listening at RANKD_URL: `python -m rankd.demo.train --run NAME`. Its standard output is one JSON
object a line: progress {"step", "loss"}, once the cause {"step", "cause_layer", "change"}, and last the summary.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from rankd.demo.model import Transformer
from rankd.demo.text import VOCABULARY, encode, read_text

if TYPE_CHECKING:
    from rankd_client import PushReceipt

OnStep = Callable[[int, Transformer, float], None]
"""Called after each optimizer step with (step, model, loss); steps count from 1."""

LOSS_WINDOW = 200
"""Steps a reported loss is averaged over: the loss of one batch has a standard deviation of 0.17 nats."""

PROGRESS_STEPS = 100

FLUSH_SECONDS = 10.0
"""How long the end waits for the last push to be recorded; its measurements take some tens of milliseconds."""


@dataclass(frozen=True, slots=True)
class Fault:
    """From `step` on, the parameter group of `layer` has `weight_decay`."""

    step: int
    layer: str = "blocks.1.down.weight"
    weight_decay: float = 10.0

    def apply(self, optimizer: torch.optim.Optimizer) -> str:
        """Changes that one setting and says so in words. Raises ValueError where no group is named `layer`."""
        for group in optimizer.param_groups:
            if group["name"] == self.layer:
                change = f"weight_decay {group['weight_decay']:g} -> {self.weight_decay:g}"
                group["weight_decay"] = self.weight_decay
                return change
        names = ", ".join(group["name"] for group in optimizer.param_groups)
        raise ValueError(f"fault layer is {self.layer!r}, expected one of {names}")


OnCause = Callable[[Fault, str], None]
"""Called once with the fault and what it changed, in words."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """One training, whole: the same config gives the same weights on the same machine."""

    steps: int = 2400
    """The fault comes at 7/12 of them. Fewer than about 1200 leave it no time to show."""
    seed: int = 0
    healthy: bool = False
    batch_size: int = 8
    context: int = 64
    learning_rate: float = 2e-3
    warmup_steps: int = 100
    weight_decay: float = 0.1
    max_gradient_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.steps < self.warmup_steps:
            raise ValueError(f"steps is {self.steps}, expected at least the {self.warmup_steps} of the warm-up")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}, expected 0 or more")

    @property
    def fault(self) -> Fault | None:
        return None if self.healthy else Fault(step=self.steps * 7 // 12)


def build_optimizer(model: Transformer, config: TrainConfig) -> torch.optim.AdamW:
    """AdamW with one parameter group a parameter, named after it; vectors are not decayed, as is usual."""
    groups = [
        {"params": [parameter], "name": name, "weight_decay": config.weight_decay if parameter.ndim > 1 else 0.0}
        for name, parameter in model.named_parameters()
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.99), fused=True)


def draw_batch(characters: Tensor, config: TrainConfig, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets, each (batch_size, context) int64: windows of the text, and the same one character on."""
    starts = torch.randint(len(characters) - config.context, (config.batch_size, 1), generator=generator)
    windows = characters[starts + torch.arange(config.context + 1)]
    return windows[:, :-1], windows[:, 1:]


def train(characters: Tensor, config: TrainConfig, on_step: OnStep, on_cause: OnCause) -> list[float]:
    """Trains a model on `characters` (int64, one-dimensional) and returns the loss of each step, in nats a character.

    `on_step` sees the model after each step; `on_cause` hears what the fault changed, just before the first step that
    it holds for. Batches come from a generator of their own, so that nothing a callback draws changes the training.
    """
    torch.manual_seed(config.seed)
    model = Transformer(VOCABULARY, config.context)
    optimizer = build_optimizer(model, config)
    generator = torch.Generator().manual_seed(config.seed)
    losses: list[float] = []
    for step in range(1, config.steps + 1):
        if config.fault is not None and step == config.fault.step:
            on_cause(config.fault, config.fault.apply(optimizer))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate * min(1.0, step / config.warmup_steps)
        inputs, targets = draw_batch(characters, config, generator)
        loss = functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.max_gradient_norm)
        optimizer.step()
        losses.append(loss.item())
        on_step(step, model, losses[-1])
    return losses


@dataclass(slots=True)
class PushTotals:
    """What the receipts of all pushes add up to."""

    num_pushes: int = 0
    num_layers: int = 0
    """The most that one push took."""
    num_replaced: int = 0
    num_dropped: int = 0
    wire_bytes: int = 0
    blocked_seconds: float = 0.0

    def add(self, receipt: PushReceipt) -> None:
        self.num_pushes += receipt.num_queued > 0
        self.num_layers = max(self.num_layers, receipt.num_queued)
        self.num_replaced += receipt.num_replaced
        self.num_dropped += receipt.num_dropped
        self.wire_bytes += receipt.wire_bytes
        self.blocked_seconds += receipt.blocked_seconds


def mean(losses: Sequence[float]) -> float | None:
    return round(sum(losses) / len(losses), 4) if losses else None


def summarize(config: TrainConfig, losses: Sequence[float], train_seconds: float, totals: PushTotals) -> dict[str, Any]:
    """The trainer's last line. Losses are means over LOSS_WINDOW steps; those about the cause are null without one."""
    fault = config.fault
    cause_index = fault.step - 1 if fault else 0
    return {
        "steps": config.steps,
        "seed": config.seed,
        "healthy": config.healthy,
        "train_seconds": round(train_seconds, 3),
        "push_blocked_seconds": round(totals.blocked_seconds, 6),
        "push_share": round(totals.blocked_seconds / train_seconds, 6),
        "num_pushes": totals.num_pushes,
        "num_layers": totals.num_layers,
        "num_replaced": totals.num_replaced,
        "num_dropped": totals.num_dropped,
        "wire_bytes": totals.wire_bytes,
        "cause_step": fault.step if fault else None,
        "cause_layer": fault.layer if fault else None,
        "loss_first": round(losses[0], 4),
        "loss_before_cause": mean(losses[:cause_index][-LOSS_WINDOW:]) if fault else None,
        "loss_after_cause": mean(losses[cause_index:][:LOSS_WINDOW]) if fault else None,
        "loss_final": mean(losses[-LOSS_WINDOW:]),
    }


def parse_arguments(argv: Sequence[str] | None) -> tuple[argparse.Namespace, TrainConfig]:
    defaults = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m rankd.demo.train", description="The trainer of `rankd demo`.")
    parser.add_argument("--run", required=True, help="name the daemon knows this training by")
    parser.add_argument("--url", help="the daemon's endpoint (default: RANKD_URL)")
    parser.add_argument("--healthy", action="store_true", help="train without the fault")
    parser.add_argument("--steps", type=int, default=defaults.steps, help="optimizer steps (%(default)s)")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="(%(default)s)")
    parser.add_argument("--every-steps", type=int, default=10, help="steps from push to push (%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.every_steps < 1:
        parser.error(f"--every-steps is {arguments.every_steps}, expected 1 or more")
    try:
        config = TrainConfig(steps=arguments.steps, seed=arguments.seed, healthy=arguments.healthy)
    except ValueError as error:
        parser.error(str(error))
    return arguments, config


def main(argv: Sequence[str] | None = None) -> None:
    from rankd_client import Client

    arguments, config = parse_arguments(argv)
    torch.set_num_threads(1)  # the daemon needs the other core
    characters = encode(read_text())
    totals = PushTotals()

    def on_step(step: int, model: Transformer, loss: float) -> None:
        totals.add(client.push(model, step=step))  # the client knows which steps are due
        if step % PROGRESS_STEPS == 0:
            emit(step=step, loss=round(loss, 4))

    def on_cause(fault: Fault, change: str) -> None:
        emit(step=fault.step, cause_layer=fault.layer, change=change)

    # No budget: it would thin the readings where a push is slow beside a step of some milliseconds.
    with Client(arguments.run, arguments.url, every_steps=arguments.every_steps, max_overhead=None) as client:
        started = time.perf_counter()
        losses = train(characters, config, on_step, on_cause)
        train_seconds = time.perf_counter() - started
        client.flush(timeout=FLUSH_SECONDS)
        path = client.stats.path
    emit(**summarize(config, losses, train_seconds, totals), path=path)


def emit(**row: Any) -> None:
    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
