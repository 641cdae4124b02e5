"""Weights of every kind → their rows."""

import math
from typing import Any

import pytest
import torch
from rounded import rounded

from rankd.config import ConfigError
from rankd.engine import Ask, WarmStarts, measure_matrices
from rankd.metrics import METRICS
from rankd.parts import SplitRules
from rankd.plan import MeasureConfig
from rankd.records import Reading, Tier
from rankd.weights import (
    DEFAULT_SETTINGS,
    MAX_PRODUCT_WORK,
    Part,
    Settings,
    Weight,
    _product,
    measure_weights,
    settings_of,
    split_of,
)

pytestmark = pytest.mark.usefixtures("one_intra_op_thread")

TIERS: list[Tier] = ["norms", "estimate", "exact"]
tiers = pytest.mark.parametrize("tier", TIERS)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=needs_cuda)])


def randn(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weight(tensor: torch.Tensor, layer: str = "w", tier: Tier = "exact", **more: Any) -> Weight:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Weight("r", layer, tensor, dtype, dtype, tier=tier, **more)


def parts_of(item: Weight, settings: Settings = DEFAULT_SETTINGS) -> dict[str, Part]:
    """By their names, in order."""
    (parts,) = measure_weights([item], settings, WarmStarts())
    assert parts[-1].layer == item.layer and parts[-1].shape == item.shape, "the whole is last"
    return {part.layer: part for part in parts}


def alone(matrix: torch.Tensor, tier: Tier = "exact") -> Reading:
    (reading,) = measure_matrices([matrix], [Ask(tier, "k")])
    return reading


def close(reading: Reading, matrix: torch.Tensor) -> bool:
    """Exactly measured, and as svdvals has it."""
    sigma = torch.linalg.svdvals(matrix.double())
    share = sigma / sigma.sum()
    expected = math.exp(float(-(share * share.clamp(min=1e-300).log()).sum()))
    found = reading.metrics["effective_rank"], reading.metrics["spectral_norm"]
    return found == pytest.approx((expected, float(sigma[0])), rel=1e-6)


@tiers
def test_a_matrix_is_one_row(tier: Tier) -> None:
    matrix = randn(150, 140)
    (part,) = parts_of(weight(matrix, tier=tier)).values()
    assert part.reading.tier in (tier, "exact") and "parts" not in part.reading.further
    metrics = dict(alone(matrix, tier).metrics)
    assert part.reading.metrics.keys() == metrics.keys()
    assert part.reading.metrics["frobenius_norm"] == pytest.approx(metrics["frobenius_norm"])
    assert part.reading.metrics["spectral_norm"] == pytest.approx(metrics["spectral_norm"], rel=1e-2)


@tiers
@pytest.mark.parametrize(
    ("shape", "bound"), [((64, 3, 7, 7), 64), ((200, 2, 3, 3), 18), ((16, 1, 3, 3), 9), ((1, 500), 1), ((500, 1), 1)]
)
def test_no_effective_or_stable_rank_exceeds_the_shorter_side(tier: Tier, shape: tuple[int, ...], bound: int) -> None:
    (part,) = parts_of(weight(randn(*shape), "conv1.weight", tier)).values()
    reading = part.reading
    assert part.shape == shape
    for name in ("stable_rank", "effective_rank", "effective_rank_energy", "participation_ratio"):
        if (value := reading.metrics[name]) is None:
            assert tier == "norms" and name != "stable_rank"
            continue
        low, high = reading.bars.get(name, (value, value))
        assert 1 - 1e-4 <= low <= value <= high <= bound * (1 + 1e-4), name
    if tier != "norms":
        assert close(reading, randn(*shape).flatten(1))


@tiers
def test_a_stack_shows_its_weakest_expert(tier: Tier) -> None:
    stack = randn(5, 140, 150)
    stack[3] = randn(140, 6) @ randn(6, 150, seed=2)
    stack[1] = 0
    (part,) = parts_of(weight(stack, "mlp.experts.up_proj", tier)).values()
    reading, experts = part.reading, part.reading.further["experts"]
    assert (experts["num"], experts["lowest"], experts["zero"], experts["nonfinite"]) == (5, 3, [1], [])
    assert reading.further["num_zero_parts"] == 1 and not reading.zero and reading.finite
    low = [alone(stack[place], tier).metrics["stable_rank"] or 0.0 for place in (0, 2, 3, 4)]
    assert reading.metrics["stable_rank"] == pytest.approx(min(low), rel=1e-2)
    assert reading.metrics["frobenius_norm"] == pytest.approx(float(stack.double().norm()))
    if tier != "norms":
        assert reading.metrics["effective_rank"] == pytest.approx(alone(stack[3]).metrics["effective_rank"], rel=0.02)


@devices
@tiers
def test_a_dead_k_inside_a_fused_weight_is_a_row_of_its_own(tier: Tier, device: str) -> None:
    fused = randn(3 * 64, 64)
    fused[64:128] = 0
    parts = parts_of(weight(fused.to(device), "h.0.attn.in_proj_weight", tier))
    assert list(parts) == [f"h.0.attn.in_proj_weight{part}" for part in (":q", ":k", ":v", "")]
    assert [part.shape for part in parts.values()] == [(64, 64)] * 3 + [(192, 64)]
    q, k, v, whole = (part.reading for part in parts.values())
    assert k.zero and k.finite and set(k.metrics.values()) == {0.0}
    assert not (q.zero or v.zero or whole.zero)
    assert {part.further["part_of"] for part in (q, k, v)} == {"h.0.attn.in_proj_weight"}
    assert whole.further["parts"] == ["q", "k", "v"] and "part_of" not in whole.further
    if tier != "norms":
        assert close(q, fused[:64]) and close(v, fused[128:]) and close(whole, fused)


def test_gpt2_keeps_its_parts_in_columns() -> None:
    fused = randn(48, 144)
    parts = parts_of(weight(fused, "h.0.attn.c_attn.weight"))
    for place, name in enumerate("qkv"):
        assert close(parts[f"h.0.attn.c_attn.weight:{name}"].reading, fused[:, 48 * place : 48 * (place + 1)])


def test_what_is_not_split_says_why() -> None:
    (part,) = parts_of(weight(randn(96, 32), "attn.query_key_value.weight")).values()
    assert "interleaved in some models" in part.reading.further["split_reason"] and close(part.reading, randn(96, 32))


def test_a_users_rule_splits_weights_alone() -> None:
    settings = settings_of(MeasureConfig(split={"*.odd": "a:10,b:6"}))
    tensor = randn(16, 8)
    parts = parts_of(weight(tensor, "x.odd"), settings)
    assert list(parts) == ["x.odd:a", "x.odd:b", "x.odd"] and close(parts["x.odd:b"].reading, tensor[10:])
    assert list(parts_of(weight(tensor, "x.odd", role="gradient"), settings)) == ["x.odd"]


def test_a_fused_stack_has_a_row_for_each_part_of_all_experts() -> None:
    stack = randn(4, 64, 32)
    stack[2, 32:] = 0
    parts = parts_of(weight(stack, "mlp.experts.gate_up_proj"))
    assert [part.shape for part in parts.values()] == [(4, 32, 32), (4, 32, 32), (4, 64, 32)]
    gate, up, whole = (part.reading for part in parts.values())
    assert (gate.further["num_zero_parts"], up.further["num_zero_parts"]) == (0, 1)
    assert up.further["experts"]["zero"] == [2] and up.further["part_of"] == "mlp.experts.gate_up_proj"
    assert whole.further["parts"] == ["gate", "up"] and "gate above up" in whole.further["split_reason"]
    assert up.metrics["effective_rank"] == pytest.approx(
        min(alone(stack[place, 32:]).metrics["effective_rank"] or 0 for place in (0, 1, 3))
    )


@devices
@tiers
@pytest.mark.parametrize("second", ["A", "B"])
def test_a_lora_pair_has_the_spectrum_of_its_product(tier: Tier, device: str, second: str) -> None:
    a, b = randn(4, 30).to(device), randn(40, 4, seed=2).to(device)
    own, other = (a, b) if second == "A" else (b, a)
    parts = parts_of(weight(own, f"q.lora_{second}.default.weight", tier, partner=other))
    assert list(parts) == ["q.lora_BA.default.weight", f"q.lora_{second}.default.weight"]
    product = parts["q.lora_BA.default.weight"]
    assert product.shape == (40, 30) and close(product.reading, b.double() @ a.double())
    assert product.reading.metrics.keys() == METRICS.keys() and product.reading.seconds > 0
    assert product.reading.method == "lora_qr+gram_eigvalsh_float64"
    assert product.reading.metrics["frobenius_norm"] == pytest.approx(float((b.double() @ a.double()).norm()))


def test_lora_factors_of_a_convolution() -> None:
    a, b = randn(4, 8, 3, 3), randn(16, 4, 1, 1, seed=2)
    parts = parts_of(weight(a, "conv.lora_A.weight", partner=b))
    assert close(parts["conv.lora_BA.weight"].reading, b.double().flatten(1) @ a.double().flatten(1))
    assert parts["conv.lora_BA.weight"].shape == (16, 72)


@pytest.mark.parametrize(
    ("inner", "rows", "cols"),
    [(100_000, 400, 400), (1 << 25, 2, 1), (5000, 5000, 5000)],
)
def test_a_product_that_would_take_minutes_is_left_out_with_a_reason(inner: int, rows: int, cols: int) -> None:
    """Views of one element: they are not looked at."""
    a, b = torch.ones(1).expand(inner, cols), torch.ones(1).expand(rows, inner)
    reason = _product(Weight("r", "x.lora_A", a, "float32", "float32", partner=b))
    assert reason == f"the product of {rows} × {inner} and {inner} × {cols} would take too long to measure"


def test_the_reason_for_no_product_is_in_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.weights.MAX_PRODUCT_WORK", MAX_PRODUCT_WORK >> 20)
    (part,) = parts_of(weight(randn(4, 30), "x.lora_A", partner=randn(40, 4))).values()
    assert part.reading.further["lora_reason"] == "the product of 40 × 4 and 4 × 30 would take too long to measure"
    assert close(part.reading, randn(4, 30))


@devices
@tiers
def test_a_batch_that_is_cut_for_want_of_memory_gives_the_same_readings(
    tier: Tier, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    items = [weight(randn(140, 150, seed=seed).to(device), f"w{seed}", tier) for seed in range(5)]
    items += [weight(randn(6, 130, 140).to(device), "experts", tier), weight(randn(90, 30).to(device), "qkv", tier)]
    sizes: list[int] = []

    def spy(matrices: list[torch.Tensor], *rest: Any) -> list[Reading]:
        sizes.append(len(matrices))
        return measure_matrices(matrices, *rest)

    monkeypatch.setattr("rankd.weights.measure_matrices", spy)
    found, taken = [], []
    for max_bytes in (math.inf, 2 * 3 * 4 * 140 * 150, 1):
        found.append(measure_weights(items, DEFAULT_SETTINGS, WarmStarts(), max_bytes))
        taken.append(sizes.copy())
        sizes.clear()
    assert taken == [[5, 6, 3, 1], [2, 2, 1, 2, 2, 2, 3, 1], [1] * 15]
    for others in found[1:]:
        for parts, also in zip(others, found[0], strict=True):
            for part, other in zip(parts, also, strict=True):
                assert (part.layer, part.shape) == (other.layer, other.shape)
                assert part.reading.tier == other.reading.tier and part.reading.method == other.reading.method
                for name, value in other.reading.metrics.items():
                    assert part.reading.metrics[name] == (value if value is None else pytest.approx(value, rel=1e-4))


def test_shapes_tiers_and_dtypes_may_be_mixed() -> None:
    items = [
        weight(randn(200, 200), "a", "norms"),
        weight(randn(200, 200), "b", "exact"),
        weight(randn(200, 200).bfloat16(), "c", "exact"),
        weight(randn(10, 20), "d", "estimate"),
        weight(torch.full((3, 3), math.nan), "e", "norms"),
        weight(torch.zeros(3, 3), "f", "estimate"),
        weight(torch.empty(0, 3), "g", "norms"),
    ]
    rows = [parts[-1] for parts in measure_weights(items, DEFAULT_SETTINGS, WarmStarts())]
    assert [row.layer for row in rows] == list("abcdefg")
    assert [row.reading.tier for row in rows] == ["norms", *["exact"] * 6]
    assert [row.reading.finite for row in rows] == [True] * 4 + [False] + [True] * 2
    assert [row.reading.zero for row in rows] == [False] * 5 + [True, False]


def test_nothing_is_written_to_the_weight() -> None:
    for tensor in (randn(96, 32), randn(3, 130, 140), randn(16, 3, 3, 3)):
        before = tensor.clone()
        for tier in TIERS:
            parts_of(weight(tensor, "attn.qkv.weight", tier))
        assert torch.equal(tensor, before)


def test_settings_that_cannot_be_are_named() -> None:
    with pytest.raises(ConfigError, match=r"measure\.split"):
        settings_of(MeasureConfig(split={"*": "q,,v"}))
    with pytest.raises(ConfigError, match=r"measure\.metrics='colour': expected some of .*power_law_alpha"):
        settings_of(MeasureConfig(metrics=("colour",)))
    settings = settings_of(MeasureConfig(tolerance=0.5, method="svdvals", split={"*": "none"}))
    assert (settings.tolerance, settings.reference) == (0.5, True)
    assert settings.rules == SplitRules.parse({"*": "none"})
    (part,) = parts_of(weight(randn(5, 4)), settings).values()
    assert part.reading.method == "svdvals_float64"


@pytest.mark.parametrize("dtype", ["int8", "float8_e4m3fn"])
@pytest.mark.parametrize("strength", [1.0, 0.1])
def test_a_part_that_is_cut_by_columns_is_rounded_as_coarsely_as_its_neighbours(dtype: str, strength: float) -> None:
    """GPT-2's c_attn: the scale of a row is that of q, k and v together."""
    size = 192
    low = strength * randn(size, 8, seed=2) @ randn(8, size, seed=3) / math.sqrt(8)
    fused = torch.cat([randn(size, size, seed=4), low, randn(size, size, seed=5)], dim=1)
    sent = Weight("r", "h.0.attn.c_attn.weight", rounded(fused, dtype), dtype, "float32")
    (found,) = measure_weights([sent], DEFAULT_SETTINGS, WarmStarts())
    parts = {part.layer.rpartition(":")[2]: part.reading for part in found}
    rank_8 = measure_matrices([low], [Ask()])[0].metrics["effective_rank"]
    assert parts["k"].metrics["effective_rank"] == pytest.approx(rank_8, rel=0.1)
    assert parts["k"].further["effective_rank_raw"] > 1.2 * rank_8 and parts["k"].further["inside_noise"]
    assert not parts["q"].further["inside_noise"]


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_that_is_cut_by_columns(dtype: torch.dtype) -> None:
    fused = randn(64, 192).to(dtype)
    (parts,) = measure_weights([weight(fused, "h.0.attn.c_attn.weight")], DEFAULT_SETTINGS, WarmStarts())
    assert [part.layer.rpartition(":")[2] for part in parts[:3]] == ["q", "k", "v"]


@pytest.mark.parametrize("name", ["h.0.attn.c_attn", "mlp.experts.w1", "x.qkv"])
def test_a_feature_is_one_matrix_whatever_it_is_called(name: str) -> None:
    tensor = torch.randn(32, 96, generator=torch.Generator().manual_seed(1))
    assert list(parts_of(weight(tensor, name, role="feature"), DEFAULT_SETTINGS)) == [name]
    stack = tensor.reshape(2, 16, 96)
    assert split_of(name, tuple(stack.shape), "feature", DEFAULT_SETTINGS).kind == "plain"
