"""A training without a route to the daemon, shipping what it spooled, and what the history holds then."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import fork_server

from rankd.store.reader import Reader

WAIT_SECONDS = 120

TRAINER = """
import sys, torch
from rankd_client import Client
run, num_steps, every_flush = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
generator = torch.Generator().manual_seed(1)
with Client(run, max_overhead=None, strict=True, echo=False) as client:
    for step in range(1000, 1000 + num_steps):
        model = {}
        for layer in range(3):
            scale = 0.2 if layer == 1 and step >= 1030 else 1.0  # four of eight singular values shrink
            noise = 0.01 * torch.randn(8, 8, generator=generator)
            model[f"h.{layer}"] = torch.diag(torch.tensor([1.0] * 4 + [scale] * 4)) + noise
        client.push(model, step=step)
        if step % every_flush == 0:
            assert client.flush(60.0)
    print("trained", flush=True)
    sys.stdin.read()
"""


def environment() -> dict[str, str]:
    """The test's own, without settings of rankd that the machine may have."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RANKD_")}


def train(url: str | None, spool: Path | None, run: str = "lm", num_steps: int = 60, **variables: str) -> list[str]:
    """A trainer's life; online, each step is measured before the next. Returns what it said on stderr."""
    mode = {"RANKD_MODE": "offline", "RANKD_SPOOL": str(spool)} if url is None else {"RANKD_URL": url}
    done = fork_server.run(
        [sys.executable, "-c", TRAINER, run, str(num_steps), "1"],
        env={**environment(), **mode, **variables},
        input="",
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert (done.returncode, done.stdout) == (0, "trained\n"), done.stderr
    return done.stderr.splitlines()


def sync_command(spool: Path, url: str, *options: str) -> list[str]:
    return [sys.executable, "-m", "rankd", "sync", str(spool), "--url", url, "--json", *options]


def sync(spool: Path, url: str, *options: str, code: int = 0) -> list[dict[str, Any]]:
    done = fork_server.run(
        sync_command(spool, url, *options), env=environment(), capture_output=True, text=True, timeout=WAIT_SECONDS
    )
    assert done.returncode == code, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def measured(data: Path, run: str = "lm") -> list[dict[str, Any]]:
    with Reader(data) as reader:
        return [measurement.to_json() for _, measurement in reader.measurements(run)]


METRICS = ("spectral_norm", "stable_rank", "effective_rank", "frobenius_norm")


def readings(data: Path, run: str = "lm") -> dict[tuple[str, int], list[float]]:
    """What was measured, by layer and step, each of which is there once."""
    rows = measured(data, run)
    counts = Counter((row["layer"], row["step"]) for row in rows)
    assert set(counts.values()) <= {1}, [key for key, number in counts.items() if number > 1]
    return {(row["layer"], row["step"]): [row[name] for name in METRICS] for row in rows}


def alerts(data: Path, run: str = "lm") -> list[tuple[Any, ...]]:
    """Those about weights, in their order by layer."""
    with Reader(data) as reader:
        found = [alert for _, alert in reader.alerts(run)]
    rows = [tuple(alert[key] for key in ("layer", "step", "rule", "state", "severity")) for alert in found]
    return sorted((row for row in rows if row[0] is not None), key=lambda row: row[0])
