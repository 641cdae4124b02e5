"""From push to published measurement at a subscriber: one 768 × 768 layer, and the 48 matrices of a GPT-2-small.

Three real processes: this one pushes and subscribes, a daemon measures, and the same matrices are measured in this
process with `torch.linalg.svdvals`, one thread, in the same run: the floor of any way that ends in that call.
Prints one JSON line a row: median and p99 over layers, and the time until the last layer of a push, of which `ratio` is
the multiple of the floor.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import threading
import time

import torch

from rankd.cli.processes import private_daemon
from rankd_client import Client, subscribe

WIDTH, NUM_BLOCKS = 768, 12
PAUSE_SECONDS = 1.0
LIMIT_SECONDS = 120.0


def gpt2_small_matrices() -> dict[str, torch.Tensor]:
    """The 48 matrices of the blocks (84.9 M parameters): c_attn, c_proj, c_fc and c_proj of each."""
    shapes = {"attn.c_attn": 3 * WIDTH, "attn.c_proj": WIDTH, "mlp.c_fc": 4 * WIDTH}
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for block in range(NUM_BLOCKS):
        for name, size in shapes.items():
            weights[f"h.{block}.{name}.weight"] = 0.02 * torch.randn(WIDTH, size, generator=generator)
        weights[f"h.{block}.mlp.c_proj.weight"] = 0.02 * torch.randn(4 * WIDTH, WIDTH, generator=generator)
    return weights


class Arrivals:
    """When each (layer, step) arrived at a subscriber, as this process's monotonic clock has it."""

    def __init__(self, url: str) -> None:
        self.times: dict[tuple[str, int], float] = {}
        self._items = subscribe(endpoint=url, streams=("measurement",))
        self._changed = threading.Condition()
        threading.Thread(target=self._follow, daemon=True).start()

    def wait(self, wanted: set[tuple[str, int]]) -> None:
        with self._changed:
            if not self._changed.wait_for(lambda: wanted <= set(self.times), LIMIT_SECONDS):
                raise RuntimeError(f"{len(wanted - set(self.times))} measurements did not arrive in {LIMIT_SECONDS} s")

    def _follow(self) -> None:
        for item in self._items:
            with self._changed:
                self.times[item["layer"], item["step"]] = time.monotonic()
                self._changed.notify_all()


def latencies(client: Client, arrivals: Arrivals, weights: dict[str, torch.Tensor], steps: range) -> list[list[float]]:
    """Per push, the seconds from its call to the arrival of each layer's measurement."""
    found = []
    for step in steps:
        started = time.monotonic()
        receipt = client.push(weights, step=step)
        if receipt.num_queued != len(weights):
            raise RuntimeError(f"step {step}: {receipt.num_queued} of {len(weights)} layers queued: {receipt.skipped}")
        arrivals.wait({(layer, step) for layer in weights})
        found.append([arrivals.times[layer, step] - started for layer in weights])
    return found


def svdvals_seconds(weights: dict[str, torch.Tensor], repeats: int) -> float:
    """Median seconds of measuring all of `weights` in this process, one thread."""
    torch.set_num_threads(1)

    def once() -> float:
        started = time.monotonic()
        for weight in weights.values():
            torch.linalg.svdvals(weight)
        return time.monotonic() - started

    return statistics.median(once() for _ in range(repeats))


def print_row(name: str, ours: list[list[float]], floor: float) -> None:
    layers = [seconds for push in ours for seconds in push]
    whole = statistics.median(max(push) for push in ours)
    row = {
        "name": name,
        "unit": "seconds",
        "median": round(statistics.median(layers), 4),
        "p99": round(statistics.quantiles(layers, n=100)[98], 4),
        "whole_push_median": round(whole, 4),
        "num_layers": len(ours[0]),
        "num_pushes": len(ours),
        "rival": round(floor, 4),
        "rival_is": "torch.linalg.svdvals of the same matrices in this process, one thread",
        "ratio": round(whole / floor, 3),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__},
    }
    print(json.dumps(row), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=100, help="of the single layer")
    parser.add_argument("--model-pushes", type=int, default=3, help="of the 48 matrices")
    arguments = parser.parse_args()
    model = gpt2_small_matrices()
    single = {"h.0.attn.c_proj.weight": model["h.0.attn.c_proj.weight"]}
    with private_daemon() as url:
        arrivals = Arrivals(url)
        for run, weights, pushes in (("single", single, arguments.pushes), ("model", model, arguments.model_pushes)):
            with Client(run=run, endpoint=url, max_overhead=None, max_push_bytes=256 << 20) as client:
                latencies(client, arrivals, weights, range(1))  # connects, allocates
                time.sleep(PAUSE_SECONDS)
                found = latencies(client, arrivals, weights, range(1, pushes + 1))
            print_row(f"push_to_published_{run}", found, svdvals_seconds(weights, 20 if run == "single" else 1))


if __name__ == "__main__":
    main()
