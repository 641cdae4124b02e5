"""Weights in parts, tiers and the plan, with real processes."""

from __future__ import annotations

import json
import random
import signal
import sys
import time
import urllib.request
from collections import Counter
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch

from rankd.store.reader import Reader
from rankd_client import Client, subscribe

pytestmark = pytest.mark.e2e
WAIT_SECONDS = 30.0
FUSED = "h.0.attn.qkv.weight"
ROWS = [f"{FUSED}{part}" for part in (":q", ":k", ":v", "")]


def fused(k_scale: float = 1.0, seed: int = 1) -> torch.Tensor:
    """Three square parts, of which k is `k_scale` as large."""
    weight = torch.randn(48, 16, generator=torch.Generator().manual_seed(seed))
    weight[16:32] *= k_scale
    return weight


def verb(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "rankd", *arguments, "--json"]
    done = fork_server.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def health(served: Any) -> dict[str, Any]:
    with urllib.request.urlopen(f"{served.ready['http']}/healthz", timeout=WAIT_SECONDS) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def trainer(served: Any, run: str = "r") -> Client:
    return Client(run, served.url, max_overhead=None, echo=False)


def push(client: Client, weights: dict[str, torch.Tensor], step: int) -> None:
    client.push(weights, step=step)
    assert client.flush(WAIT_SECONDS)


def test_a_dead_k_inside_a_fused_weight_is_seen(serve: Any, directory: Path) -> None:
    data = directory / "data"
    served = serve("--data", str(data))
    with subscribe(served.url, timeout=WAIT_SECONDS) as live, trainer(served) as client:
        push(client, {FUSED: fused()}, step=1)
        push(client, {FUSED: fused(k_scale=0.0)}, step=2)
        fired = next(live)
        push(client, {FUSED: fused()}, step=3)
        ended = next(live)
    seen = [(a["rule"], a["state"], a["severity"], a["layer"], a["step"]) for a in (fired, ended)]
    assert seen == [
        ("zero", "firing", "critical", f"{FUSED}:k", 2),
        ("zero", "resolved", "critical", f"{FUSED}:k", 3),
    ]
    rows = verb("query", "r", "--data", str(data))
    assert sorted((row["step"], row["layer"]) for row in rows) == sorted((n, name) for n in (1, 2, 3) for name in ROWS)
    second = {row["layer"]: row for row in rows if row["step"] == 2}
    assert [second[name]["shape"] for name in ROWS] == [[16, 16], [16, 16], [16, 16], [48, 16]]
    assert (second[f"{FUSED}:k"]["spectral_norm"], second[f"{FUSED}:k"]["part_of"]) == (0, FUSED)
    assert second[f"{FUSED}:q"]["effective_rank"] > 8 and second[FUSED]["parts"] == ["q", "k", "v"]
    assert len(verb("query", "r", "--alerts", "--data", str(data))) == 2


@pytest.mark.long
def test_killed_at_any_moment_a_snapshot_has_all_its_rows_or_none_and_none_twice(serve: Any, directory: Path) -> None:
    data, moment = directory / "data", random.Random()
    layers = [f"h.{i}.attn.qkv.weight" for i in range(12)]
    served = serve("--data", str(data))
    with trainer(served) as client:
        for step in range(1, 31):
            client.push({layer: fused(seed=step) for layer in layers}, step=step)
            if step % 10 == 0:
                time.sleep(moment.uniform(0.0, 0.1))
                served.process.send_signal(signal.SIGKILL)
                served.process.wait(WAIT_SECONDS)
                served = serve("--data", str(data))
            elif step % 3 == 0:
                assert client.flush(WAIT_SECONDS)
        assert client.flush(WAIT_SECONDS), "what was not on disk is sent again"
        assert client.num_errors == 0
    with Reader(data) as reader:
        rows = [(row.step, row.layer) for _, row in reader.measurements("r")]
        numbers = [n for n, _ in reader.measurements("r")]
    assert numbers == list(range(1, len(rows) + 1))
    assert max(Counter(rows).values()) == 1
    wholes = {(step, layer) for step, layer in rows if ":" not in layer}
    assert {(30, layer) for layer in layers} <= wholes and len(wholes) >= 10 * len(layers)
    assert set(rows) == {(step, f"{layer}{part}") for step, layer in wholes for part in ("", ":q", ":k", ":v")}


def test_a_layer_that_is_called_as_a_part_is_ends_nothing(serve: Any, directory: Path) -> None:
    """Both share a row's name, and what that costs is its own run's trouble."""
    data = directory / "data"
    served = serve("--data", str(data))
    literal = f"{FUSED}:k"
    with trainer(served) as client, trainer(served, "other") as other:
        for step in range(1, 6):
            push(client, {FUSED: fused(seed=step), literal: torch.randn(5, 7)}, step)
        push(client, {FUSED: torch.randn(40, 16), literal: torch.randn(5, 7)}, step=6)  # no longer three squares
        push(client, {FUSED: fused()}, step=7)
        push(other, {"w": fused()}, step=1)
        assert client.num_errors == 0
    rows = Counter(row["layer"] for row in verb("query", "r", "--data", str(data)))
    assert rows == {FUSED: 7, literal: 6 + 6, f"{FUSED}:q": 6, f"{FUSED}:v": 6}
    assert [row["layer"] for row in verb("query", "other", "--data", str(data))] == ["w"]


def test_a_fused_weight_of_another_shape_starts_anew(serve: Any, directory: Path) -> None:
    data = directory / "data"
    served = serve("--data", str(data))
    with subscribe(served.url, timeout=WAIT_SECONDS) as live, trainer(served) as client:
        push(client, {FUSED: fused()}, step=1)
        push(client, {FUSED: torch.randn(96, 32)}, step=2)
        seen = [next(live) for _ in range(4)]
        push(client, {FUSED: torch.randn(90, 32)}, step=3)
        seen.append(next(live))
    assert [(a["rule"], a["layer"], a["step"]) for a in seen] == [
        *[("baseline_reset", name, 2) for name in ROWS],
        ("baseline_reset", FUSED, 3),
    ]
    (row,) = verb("query", "r", "--from", "3", "--data", str(data))
    assert (row["layer"], row["shape"]) == (FUSED, [90, 32]) and "not three square parts" in row["split_reason"]


def test_alerts_of_parts_end_where_a_restart_changes_the_rule(serve: Any, directory: Path) -> None:
    data, rules = directory / "data", directory / "rankd.toml"
    served = serve("--data", str(data))
    with trainer(served) as client:
        push(client, {FUSED: fused(k_scale=0.0)}, step=1)
    assert served.stop() == 0
    rules.write_text(f'[measure.split]\n"{FUSED}" = "none"\n')
    for step in (2, 3):
        served = serve("--data", str(data), "--config", str(rules))
        with trainer(served) as client:
            push(client, {FUSED: fused(k_scale=0.0)}, step=step)
        assert served.stop() == 0
    fired, ended = verb("query", "r", "--alerts", "--data", str(data))
    assert (fired["layer"], fired["rule"], fired["state"], fired["step"]) == (f"{FUSED}:k", "zero", "firing", 1)
    assert (ended["alert_id"], ended["state"], ended["step"]) == (fired["alert_id"], "rebased", 2)
    assert f"{FUSED} has no such part any more" in ended["message"]
    assert [row["layer"] for row in verb("query", "r", "--from", "2", "--data", str(data))] == [FUSED] * 2
    with Reader(data) as reader:
        assert list(reader.firing()) == []


@pytest.mark.filterwarnings("default")  # of the package
def test_a_metric_of_a_spectrum_that_no_law_fits_ends_nothing(serve: Any, directory: Path) -> None:
    pytest.importorskip("powerlaw")
    data, config = directory / "data", directory / "rankd.toml"
    config.write_text('[measure]\nmetrics = ["power_law_alpha"]\n')
    served = serve("--data", str(data), "--config", str(config))
    with trainer(served) as client:
        push(client, {"flat": torch.eye(64)}, step=1)
        push(client, {"w": torch.randn(64, 64, generator=torch.Generator().manual_seed(1))}, step=2)
        assert client.num_errors == 0
    flat, random_one = verb("query", "r", "--data", str(data))
    assert flat["effective_rank"] == pytest.approx(64) and flat["power_law_alpha"] is None
    assert random_one["power_law_alpha"] > 1


def test_a_thousand_experts_and_a_lora_pair(serve: Any, directory: Path) -> None:
    data = directory / "data"
    served = serve("--data", str(data))
    stack = torch.randn(1000, 16, 16)
    stack[17] = 0
    factors = {"q.lora_A.default.weight": torch.randn(4, 30), "q.lora_B.default.weight": torch.randn(20, 4)}
    with trainer(served) as client:
        push(client, {"mlp.experts.up_proj": stack, **factors}, step=1)
    rows = {row["layer"]: row for row in verb("query", "r", "--data", str(data))}
    assert set(rows) == {"mlp.experts.up_proj", *factors, "q.lora_BA.default.weight"}
    assert rows["mlp.experts.up_proj"]["num_zero_parts"] == 1
    assert rows["mlp.experts.up_proj"]["experts"]["zero"] == [17]
    product = rows["q.lora_BA.default.weight"]
    assert product["shape"] == [20, 30] and 1 < product["effective_rank"] <= 4


@pytest.mark.parametrize("tier", ["norms", "exact"])
def test_a_tier_chosen_by_hand_and_the_plan_for_people(serve: Any, directory: Path, tier: str) -> None:
    data = directory / "data"
    served = serve("--data", str(data), "--tier", tier, "--http", "127.0.0.1:0")
    with trainer(served) as client:
        for step in range(1, 4):
            push(client, {"w": torch.randn(60, 40), FUSED: fused()}, step)
    rows = verb("query", "r", "--data", str(data))
    assert len(rows) == 15 and {row["tier"] for row in rows} == {tier}
    for row in rows:
        low, high = (row.get(f"spectral_norm_{end}", row["spectral_norm"]) for end in ("low", "high"))
        assert low <= row["spectral_norm"] <= high and (row["effective_rank"] is None) == (tier == "norms")
        assert ("spectral_norm_low" in row) == (tier == "norms")
    until = time.monotonic() + WAIT_SECONDS
    while (said := health(served))["plan"]["layers"] != {tier: 2}:  # as the next review has it
        assert time.monotonic() < until, said
        time.sleep(0.1)
    assert said["lag_seconds"] == 0 and said["plan"]["tier"] == tier
    found = verb("doctor", "--url", served.url, "--data", str(data), "--config", "off")
    (plan,) = [finding for finding in found if finding["check"] == "plan"]
    assert plan["status"] == "ok" and plan["text"].startswith(f"layers measured: 2 {tier};")
