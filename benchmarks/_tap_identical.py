"""Trains twice from one seed under deterministic algorithms, once with pushes: is every loss the same, bit for bit?

A process of its own, because cuBLAS has to be told before it starts. Prints one JSON object. With dropout, so that a
random state that was touched would show.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from typing import Any

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from _tap_training import GPT2_SMALL, TINY, Training

from rankd_client import Client

PUSH_EVERY = 3


def train(arguments: argparse.Namespace, url: str | None, seed: int = 0) -> dict[str, Any]:
    """Losses as they are in memory, weights, and random states after `arguments.steps` steps; pushed to `url`."""
    random.seed(seed)
    training = Training(TINY if arguments.tiny else GPT2_SMALL, arguments.device, seed, dropout=0.1)
    client = None
    if url is not None:
        client = Client("identical", url, max_overhead=None, max_push_bytes=1 << 30, echo=False, strict=True)
        client.attach(training.model, training.optimizer)
    losses, num_pushed = [], 0
    for step in range(arguments.steps):
        losses.append(training.step())
        if client is not None and step % PUSH_EVERY == 0:
            num_pushed += client.push(training.model, step).num_queued > 0
    states = [torch.get_rng_state()]
    if training.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(training.device))
    weights = [parameter.detach().cpu() for parameter in training.model.parameters()]
    if client is not None:
        client.close()
    return {
        "losses": [loss.float().cpu().view(torch.int32).item() for loss in losses],
        "weights": weights,
        "states": states,
        "random": random.getstate(),
        "num_pushed": num_pushed,
    }


def equal(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--tiny", action="store_true")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    without, pushed = train(arguments, None), train(arguments, arguments.url)
    pairs = zip(without["losses"], pushed["losses"], strict=True)
    found = {
        "steps": arguments.steps,
        "pushes": pushed["num_pushed"],
        "different_losses": sum(a != b for a, b in pairs),
        "distinct_losses": len(set(without["losses"])),
        "weights_equal": equal(without["weights"], pushed["weights"]),
        "random_states_equal": equal(without["states"], pushed["states"]) and without["random"] == pushed["random"],
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
