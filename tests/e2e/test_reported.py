"""Numbers of one layer and step that a trainer gives twice, to a real daemon: what is not recorded is told."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch

from rankd_client import Client

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 30.0


def test_each_row_that_a_receipt_does_not_refuse_is_recorded(serve: Any, directory: Path) -> None:
    served = serve("--data", str(directory / "data"))
    taken = []
    with Client("twice", served.url, strict=True) as client:
        for step in (0, 0, 1, 1, 5, 2, 5, 5):  # a run that goes back to 2, and comes to 5 again
            for metric in ("effective_rank", "spectral_norm"):
                receipt = client.push_measurements({"w": {metric: 2.0}}, step)
                assert len(receipt.skipped) == 1 - receipt.num_queued
                taken += [(step, metric)] * receipt.num_queued
        assert client.flush(WAIT_SECONDS) and client.stats.num_dropped == 0
        client.push({"v": torch.eye(4)}, 7)
        receipts = [client.push_measurements({layer: {"effective_rank": 2.0}}) for layer in ("w", "x", "w")]
        assert [receipt.step for receipt in receipts] == [7, 7, 7]
        assert receipts[2].skipped == {"w": "already reported at step 7: give all its metrics in one call"}
        assert client.flush(WAIT_SECONDS)
    assert served.stop() == 0
    assert taken == [(step, "effective_rank") for step in (0, 1, 5, 2, 5)]
    command = [sys.executable, "-m", "rankd", "query", "twice", "--data", str(directory / "data"), "--json"]
    done = fork_server.run([*command, "--layer", "w"], capture_output=True, text=True, timeout=120, check=True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["step"], row["effective_rank"]) for row in rows] == [(step, 2.0) for step in (0, 1, 5, 2, 5, 7)]
