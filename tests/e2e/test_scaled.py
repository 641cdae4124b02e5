"""Copies with a scale per row, from a trainer to the row that it is measured as."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch

from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 60.0
SCALED = ("int8", "float8_e4m3fn", "float8_e5m2")
DTYPES = ("float32", "bfloat16", *SCALED)


def verb(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "rankd", *arguments]
    done = fork_server.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def trainer(url: str, run: str, dtype: str) -> Client:
    return Client(run, url, dtype=dtype, max_overhead=None, echo=False, strict=True)


def push(client: Client, weights: dict[str, torch.Tensor], step: int) -> None:
    assert client.push(weights, step=step).num_queued == len(weights)
    assert client.flush(WAIT_SECONDS)
    assert client.num_errors == 0


def low_rank(size: int, rank: int, generator: torch.Generator) -> torch.Tensor:
    a, b = (torch.randn(size, rank, generator=generator) for _ in range(2))
    return torch.linalg.qr(a)[0] @ torch.linalg.qr(b)[0].T


def test_a_matrix_of_rank_8_is_one_in_every_dtype(serve: Any, directory: Path) -> None:
    data = directory / "data"
    url = serve("--data", str(data)).url
    weight = low_rank(768, 8, torch.Generator().manual_seed(1))
    for dtype in DTYPES:
        with trainer(url, dtype, dtype) as client:
            push(client, {"w": weight}, 1)
    for dtype in DTYPES:
        (row,) = verb("query", dtype, "--json", "--data", str(data))
        assert (row["wire_dtype"], row["source_dtype"], row["finite"]) == (dtype, "float32", True)
        exact = abs(row["effective_rank"] - 8) <= 0.8
        assert exact or (dtype.startswith("float8") and row["inside_noise"]), row
        if dtype in SCALED:
            assert row["effective_rank_raw"] > 10 and row["wire_noise_floor"] > 0
        assert row["stable_rank"] == pytest.approx(8, rel=0.05)


def test_another_dtype_in_mid_run_raises_nothing(serve: Any, directory: Path) -> None:
    """Neither of a full matrix nor of one whose spectrum falls off; live, and of the recording."""
    data = directory / "data"
    url = serve("--data", str(data)).url
    generator = torch.Generator().manual_seed(2)
    full = torch.randn(96, 64, generator=generator)
    falling = torch.linalg.qr(torch.randn(96, 64, generator=generator))[0] @ torch.diag(0.9 ** torch.arange(64.0))
    step = 1000
    with subscribe(url, timeout=1.0) as live:
        for dtype in ("bfloat16", "int8", "bfloat16", "float8_e4m3fn", "float8_e5m2", "int8"):
            with trainer(url, "r", dtype) as client:
                for _ in range(8):
                    step += 20
                    moved = [weight + 0.002 * torch.randn(96, 64, generator=generator) for weight in (full, falling)]
                    push(client, dict(zip(("full", "falling"), moved, strict=True)), step)
        assert list(live) == []
    rows = verb("query", "r", "--json", "--data", str(data))
    assert len(rows) == 96 and {row["wire_dtype"] for row in rows} == {"bfloat16", *SCALED}
    recording = directory / "rows.jsonl"
    recording.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert verb("replay", "--json", str(recording)) == []


@pytest.mark.parametrize("dtype", SCALED)
def test_what_must_not_be_lost_is_noticed(serve: Any, dtype: str) -> None:
    url = serve().url
    sound = torch.randn(32, 32, generator=torch.Generator().manual_seed(3))
    bad = {name: sound.clone() for name in ("nan", "inf", "sound")}
    bad["nan"][5, 7], bad["inf"][31, 0] = math.nan, -math.inf
    bad |= {"zero": torch.zeros(32, 32), "tiny": sound * 1e-38}
    with subscribe(url, timeout=WAIT_SECONDS) as live, trainer(url, "r", dtype) as client:
        push(client, bad, 1)
        alerts = [next(live) for _ in range(3)]
    assert sorted((alert["layer"], alert["rule"]) for alert in alerts) == [
        ("inf", "nonfinite"),
        ("nan", "nonfinite"),
        ("zero", "zero"),
    ]


def test_a_stack_of_experts_and_rows_without_room_for_a_scale(serve: Any, directory: Path) -> None:
    data = directory / "data"
    url = serve("--data", str(data)).url
    generator = torch.Generator().manual_seed(4)
    experts = torch.stack([scale * low_rank(64, 8, generator) for scale in (1.0, 1e-3)])
    with trainer(url, "r", "int8") as client:
        push(client, {"experts": experts, "column": torch.randn(64, 1, generator=generator)}, 1)
    rows = {row["layer"]: row for row in verb("query", "r", "--json", "--data", str(data))}
    assert rows["experts"]["effective_rank"] == pytest.approx(8, rel=0.1)
    assert (rows["experts"]["wire_dtype"], rows["column"]["wire_dtype"]) == ("int8", "float32")
