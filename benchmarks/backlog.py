"""A backlog drains: how long after the last push every layer's newest step is measured and recorded.

The 48 matrices of a GPT-2-small are pushed, each push at once behind the one before, for 30 s, to a daemon that
measures them on the same cores. Then nothing is pushed any more, and the time until the client has heard that the
newest snapshot of every layer is recorded is to be at most 30 s. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from _daemon import Daemon
from _report import Report
from _state import state
from push_cost import blocks

from rankd_client import Client

NUM_BLOCKS = 12
LIMIT_SECONDS = 30.0
GIVE_UP_SECONDS = 300.0


def push_for(client: Client, model: dict[str, torch.Tensor], seconds: float) -> int:
    """As fast as it goes; returns how many pushes that were."""
    until, num_pushes = time.monotonic() + seconds, 0
    while time.monotonic() < until:
        for tensor in model.values():
            tensor.mul_(1.0001)
        client.push(model, step=num_pushes)
        num_pushes += 1
    return num_pushes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of pushing")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model = {name: tensor for block in blocks()[:NUM_BLOCKS] for name, tensor in block.items() if tensor.dim() > 1}
    report = Report()
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        daemon = Daemon(Path(directory))
        daemon.start()
        try:
            daemon.wait_ready()
            client = Client("backlog", daemon.url, max_overhead=None, max_push_bytes=1 << 30, echo=False, strict=True)
            with client:
                num_pushes = push_for(client, model, arguments.seconds)
                began = time.monotonic()
                drained = client.flush(GIVE_UP_SECONDS)
                seconds = time.monotonic() - began
            told = state(daemon.url)
            daemon.check()
        finally:
            daemon.close()
    (run,) = told["runs"]
    more = {"drained": drained, "pushes": num_pushes, "matrices": len(model), "measured": run["num_measurements"]}
    more |= {"newest_step": run["step"] == num_pushes - 1, "layers_by_tier": told["plan"]["layers"]}
    report.row("backlog_drains", round(seconds, 2) if drained else GIVE_UP_SECONDS, LIMIT_SECONDS, "seconds", **more)
    return report.exit_code


if __name__ == "__main__":
    raise SystemExit(main())
