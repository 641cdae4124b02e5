"""Checkpoints: which rows come of their weights."""

import os
import sys
from pathlib import Path
from typing import Any

import fork_server
import pytest
import torch
from safetensors.torch import save_file

from rankd.checkpoint import analyze_file
from rankd.plan import MeasureConfig
from rankd.records import Measurement
from rankd.weights import settings_of

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")


def randn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def rows(path: Path, tensors: dict[str, torch.Tensor], **more: Any) -> dict[str, Measurement]:
    save_file(tensors, path / "m.safetensors")
    return {row.layer: row for row in analyze_file(path / "m.safetensors", **more)}


def test_parts_of_a_fused_weight_and_then_the_whole(tmp_path: Path) -> None:
    fused = randn(48, 16)
    fused[16:32] = 0
    found = rows(tmp_path, {"h.qkv.weight": fused, "mine": randn(4, 6)}, settings=settings_of(MeasureConfig()))
    assert list(found) == ["h.qkv.weight:q", "h.qkv.weight:k", "h.qkv.weight:v", "h.qkv.weight", "mine"]
    assert found["h.qkv.weight:k"].zero and found["h.qkv.weight:k"].to_json()["part_of"] == "h.qkv.weight"
    whole = found["h.qkv.weight"].to_json()
    assert (whole["parts"], whole["shape"], whole["step"]) == (["q", "k", "v"], [48, 16], None)
    ruled = rows(tmp_path, {"mine": randn(4, 6)}, settings=settings_of(MeasureConfig(split={"mine": "a:1,b:3"})))
    assert list(ruled) == ["mine:a", "mine:b", "mine"]


@pytest.mark.parametrize("tier", ["norms", "exact", "auto"])
def test_a_lora_product_comes_with_the_second_factor(tmp_path: Path, tier: str) -> None:
    a, b = randn(4, 30), randn(20, 4)
    found = rows(tmp_path, {"q.lora_A.weight": a, "q.lora_B.weight": b}, tier=tier)
    assert list(found) == ["q.lora_A.weight", "q.lora_BA.weight", "q.lora_B.weight"]
    product = found["q.lora_BA.weight"]
    sigma = torch.linalg.svdvals(b.double() @ a.double())
    assert product.shape == (20, 30) and product.metrics["spectral_norm"] == pytest.approx(float(sigma[0]))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(4, 3), torch.ones(2, 5)),
        (torch.ones(4, 3), torch.zeros(2, 4)),
        (torch.full((4, 3), torch.nan), torch.ones(2, 4)),
        (torch.ones(4, 3), torch.ones(0, 4)),
        (torch.ones(0, 3), torch.ones(2, 0)),
        (torch.ones(4, 3), torch.zeros(2, 4).to(torch.float8_e4m3fn)),
    ],
)
def test_factors_without_a_product_are_rows_all_the_same(tmp_path: Path, a: torch.Tensor, b: torch.Tensor) -> None:
    assert list(rows(tmp_path, {"q.lora_A": a, "q.lora_B": b})) == ["q.lora_A", "q.lora_B"]


def test_auto_reckons_with_the_matrices_that_are_measured(tmp_path: Path) -> None:
    """Estimates where exact takes long, but a stack of small ones, however large, is exact."""
    tensors = {"conv.weight": randn(2048, 512, 4), "experts": randn(200, 64, 64), "small": randn(60, 50)}
    found = rows(tmp_path, tensors, tier="auto")
    assert {layer: row.tier for layer, row in found.items()} == {
        "conv.weight": "estimate",
        "experts": "exact",
        "small": "exact",
    }


def test_a_device_that_fails_leaves_the_file_to_the_cpu(tmp_path: Path) -> None:
    absent = torch.device("cuda", torch.cuda.device_count())
    found = rows(tmp_path, {"a": torch.eye(3), "b": torch.eye(4)}, device=absent)
    assert [row.metrics["stable_rank"] for row in found.values()] == pytest.approx([3.0, 4.0])


WITHOUT_MEMORY = """
import resource, sys
from rankd.checkpoint import analyze_file

reasons = {}
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (320 << 20), resource.RLIM_INFINITY))
rows = [row.layer for row in analyze_file(sys.argv[1], reasons.__setitem__)]
assert rows == ["small"], rows
assert list(reasons) == ["large"] and "not enough memory to measure a matrix of shape 2×33554432" in reasons["large"]
"""


def test_what_there_is_no_memory_for_is_left_out_with_a_reason(tmp_path: Path) -> None:
    tensors = {"large": torch.ones(2, 1 << 25, dtype=torch.bfloat16), "small": torch.eye(2)}
    torch.save(tensors, tmp_path / "m.pt")
    command = [sys.executable, "-c", WITHOUT_MEMORY, str(tmp_path / "m.pt")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = fork_server.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
