import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rankd.parts import MAX_MATRICES, MAX_PARTS, NO_RULES, SplitRules, part_name, split

EMBED, HEADS, GROUPS = 48, 6, 2
HEAD = EMBED // HEADS
GROUPED = [("q", (4096, 4096)), ("k", (1024, 4096)), ("v", (1024, 4096))]


def find(layer: str, shape: tuple[int, ...], rule: str | None = None) -> tuple[str, list[tuple[str, tuple[int, ...]]]]:
    found = split(layer, shape, SplitRules.parse({"*": rule}) if rule else NO_RULES)
    return found.kind, [(part.name, part.shape) for part in found.parts]


@pytest.mark.parametrize(
    ("layer", "shape", "kind", "parts"),
    [
        ("fc.weight", (512, 2048), "plain", [("", (512, 2048))]),
        ("wte.weight", (50257, 768), "plain", [("", (50257, 768))]),
        ("conv1.weight", (64, 3, 7, 7), "plain", [("", (64, 147))]),
        ("conv.weight", (512, 512, 17), "plain", [("", (512, 8704))]),
        ("encoder.pos_conv_embed.conv.weight", (1024, 64, 128), "plain", [("", (1024, 8192))]),
        ("net.0.weight", (512, 256, 3), "plain", [("", (512, 768))]),
        ("vision.patch.weight", (768, 3, 2, 14, 14), "plain", [("", (768, 1176))]),
        ("row", (1, 4096), "plain", [("", (1, 4096))]),
        ("column", (4096, 1), "plain", [("", (4096, 1))]),
        ("gain", (1, 1), "plain", [("", (1, 1))]),
        ("empty", (0, 8, 8), "plain", [("", (0, 64))]),
        ("h.0.mlp.w1", (8, 64, 32), "experts", [("", (8, 64, 32))]),
        ("h.0.experts.down_proj", (8, 4, 2), "experts", [("", (8, 4, 2))]),
        ("pos_embed", (1, 197, 768), "experts", [("", (1, 197, 768))]),
        ("h.0.attn.c_attn.weight", (768, 2304), "fused", [(name, (768, 768)) for name in "qkv"]),
        ("h.0.attn.c_attn.weight", (2304, 768), "fused", [(name, (768, 768)) for name in "qkv"]),
        ("blocks.0.attn.qkv.weight", (2304, 768), "fused", [(name, (768, 768)) for name in "qkv"]),
        ("attn.Wqkv.base_layer.weight", (96, 32), "fused", [(name, (32, 32)) for name in "qkv"]),
        ("attn.qkv.parametrizations.weight.original", (96, 32), "fused", [(name, (32, 32)) for name in "qkv"]),
        ("self_attn.in_proj_weight", (1536, 512), "fused", [(name, (512, 512)) for name in "qkv"]),
        ("in_proj_weight", (1536, 512), "fused", [(name, (512, 512)) for name in "qkv"]),
        ("mlp.gate_up_proj.weight", (16384, 3072), "fused", [("gate", (8192, 3072)), ("up", (8192, 3072))]),
        ("mlp.experts.gate_up_proj", (4, 64, 16), "fused", [("gate", (4, 32, 16)), ("up", (4, 32, 16))]),
        ("feed_forward.experts.gate_up_proj", (4, 16, 64), "fused", [("gate", (4, 16, 32)), ("up", (4, 16, 32))]),
    ],
)
def test_matrices_of_real_shapes(
    layer: str, shape: tuple[int, ...], kind: str, parts: list[tuple[str, tuple[int, ...]]]
) -> None:
    assert find(layer, shape) == (kind, parts)


@pytest.mark.parametrize(
    ("layer", "shape", "rule", "kind", "parts"),
    [
        ("qkv.weight", (96, 32), "none", "plain", [("", (96, 32))]),
        ("experts.w", (4, 8, 2), "none", "plain", [("", (4, 16))]),
        ("bank", (4, 8, 2), "experts", "experts", [("", (4, 8, 2))]),
        ("bank", (4, 8, 2), "a,b;experts", "fused", [("a", (4, 4, 2)), ("b", (4, 4, 2))]),
        ("x", (10, 6), "a,b,c", "fused", [(name, (10, 2)) for name in "abc"]),
        ("x", (6, 6), "a,b,c", "fused", [(name, (2, 6)) for name in "abc"]),
        ("x", (6, 6), "a,b,c;axis=1", "fused", [(name, (6, 2)) for name in "abc"]),
        ("x", (6144, 4096), "q:4096,k:1024,v:1024", "fused", GROUPED),
        ("x", (6144, 4096), "q,k,v;heads=32;groups=8", "fused", GROUPED),
        ("x", (8, 8), "o;heads=2;per_head;axis=1", "fused", [("o.head0", (8, 4)), ("o.head1", (8, 4))]),
        ("conv.weight", (12, 4, 1), "q,k,v", "fused", [(name, (4, 4)) for name in "qkv"]),
    ],
)
def test_a_rule_comes_before_what_is_known_of_names(
    layer: str, shape: tuple[int, ...], rule: str, kind: str, parts: list[tuple[str, tuple[int, ...]]]
) -> None:
    assert find(layer, shape, rule) == (kind, parts)


@pytest.mark.parametrize(
    ("layer", "shape", "rule", "reason"),
    [
        ("attn.query_key_value.weight", (96, 32), None, "interleaved in some models and not in others"),
        ("attn.linear_qkv.weight", (96, 32), None, "heads=N;interleaved"),
        ("attn.qkv_proj.weight", (6144, 4096), None, "6144 × 4096 is not three square parts"),
        ("attn.qkv.weight", (96, 32, 1), None, "a split rule tells"),
        ("mlp.gate_up_proj.weight", (33, 8), None, "33 rows are not two equal parts"),
        ("x", (7, 5), "q,k,v", "'q,k,v' expects a multiple of 3 rows or columns, not 7 × 5"),
        ("x", (7, 5), "q:3,k:3;axis=0", "expects 6 rows, not 7 × 5"),
        ("x", (96, 32), "q,k,v;heads=5;interleaved;axis=0", "expects a multiple of 15 rows"),
        ("x", (8, 8), "experts", "expects three dimensions, not 2"),
        ("experts.w", (MAX_MATRICES + 1, 2, 2), None, f"{MAX_MATRICES} at most"),
        ("experts.w", (MAX_MATRICES // 2 + 1, 2, 2), "a,b", f"{MAX_MATRICES} at most"),
    ],
)
def test_what_is_left_whole_has_a_reason(layer: str, shape: tuple[int, ...], rule: str | None, reason: str) -> None:
    found = split(layer, shape, SplitRules.parse({"*": rule}) if rule else NO_RULES)
    assert found.kind == "plain" and found.parts == (found.whole,)
    assert found.reason is not None and reason in found.reason


def test_an_assumed_layout_is_said_to_be_assumed() -> None:
    found = split("mlp.experts.gate_up_proj", (4, 16, 64))
    assert found.kind == "fused" and found.reason is not None and "if columns hold them" in found.reason


@pytest.mark.parametrize("shape", [(), (5,)])
def test_fewer_than_two_dimensions_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected two or more"):
        split("bias", shape)


def test_names_of_rows() -> None:
    assert part_name("h.0.attn.c_attn.weight", "k") == "h.0.attn.c_attn.weight:k"
    assert part_name("h.0.attn.c_attn.weight", "") == "h.0.attn.c_attn.weight"


def named_factors() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """q, k (dead) and v of an attention with grouped keys and values."""
    generator = torch.Generator().manual_seed(0)
    q, v = torch.randn(EMBED, EMBED, generator=generator), torch.randn(GROUPS * HEAD, EMBED, generator=generator)
    return q, torch.zeros(GROUPS * HEAD, EMBED), v


def interleave(parts: tuple[torch.Tensor, ...], num_blocks: int) -> torch.Tensor:
    return torch.cat([part.unflatten(0, (num_blocks, -1)) for part in parts], dim=1).flatten(0, 1)


@pytest.mark.parametrize(
    ("layer", "rule", "layout"),
    [
        ("c_attn.weight", None, "columns"),
        ("c_attn.weight", None, "rows"),
        ("in_proj_weight", None, "rows"),
        ("query_key_value.weight", f"q,k,v;heads={HEADS};interleaved", "heads"),
        ("linear_qkv.weight", f"q,k,v;heads={HEADS};groups={GROUPS};interleaved", "groups"),
        ("qkv_proj.weight", f"q,k,v;heads={HEADS};groups={GROUPS}", "grouped rows"),
        ("qkv_proj.weight", f"q:{EMBED},k:{GROUPS * HEAD},v:{GROUPS * HEAD}", "grouped rows"),
    ],
)
def test_a_dead_k_is_seen_in_every_layout(layer: str, rule: str | None, layout: str) -> None:
    q, k, v = named_factors()
    if layout in ("columns", "rows", "heads"):
        k, v = torch.zeros(EMBED, EMBED), torch.randn(EMBED, EMBED, generator=torch.Generator().manual_seed(1))
    num_blocks = {"heads": HEADS, "groups": GROUPS}.get(layout, 1)
    weight = interleave((q, k, v), num_blocks)
    if layout == "columns":
        q, k, v, weight = q.T, k.T, v.T, weight.T.contiguous()
    found = split(layer, tuple(weight.shape), SplitRules.parse({"*": rule}) if rule else NO_RULES)
    views = {part.name: part.view(weight) for part in found.parts}
    assert list(views) == ["q", "k", "v"] and found.reason is None
    for name, expected in (("q", q), ("k", k), ("v", v)):
        assert torch.equal(views[name], expected)
    assert not views["k"].any() and views["q"].any() and views["v"].any()
    assert torch.equal(found.whole.view(weight), weight)


@pytest.mark.parametrize("num_blocks", [1, GROUPS])
def test_heads_are_the_same_whether_interleaved_or_not(num_blocks: int) -> None:
    factors = named_factors()
    weight = interleave(factors, num_blocks)
    option = ";interleaved" if num_blocks > 1 else ""
    rules = SplitRules.parse({"*": f"q,k,v;heads={HEADS};groups={GROUPS};per_head{option}"})
    views = {part.name: part.view(weight) for part in split("x", tuple(weight.shape), rules).parts}
    assert len(views) == HEADS + 2 * GROUPS
    for name, factor in zip("qkv", factors, strict=True):
        for head, rows in enumerate(factor.split(HEAD)):
            assert torch.equal(views[f"{name}.head{head}"], rows)


def test_alternating_columns_of_experts() -> None:
    weight = torch.arange(2 * 3 * 8.0).reshape(2, 3, 8)
    rules = SplitRules.parse({"*.gate_up_proj": "gate,up;axis=1;heads=4;interleaved"})
    gate, up = split("experts.gate_up_proj", (2, 3, 8), rules).parts
    assert torch.equal(gate.view(weight), weight[:, :, ::2])
    assert torch.equal(up.view(weight), weight[:, :, 1::2])


@pytest.mark.parametrize(
    ("layer", "shape", "rule"),
    [
        ("x", (6, 4), None),
        ("conv", (6, 2, 2), None),
        ("c_attn", (4, 12), None),
        ("c_attn", (12, 4), None),
        ("experts", (3, 4, 4), None),
        ("experts.gate_up_proj", (3, 4, 4), None),
        ("x", (12, 4), "q,k,v;heads=2;per_head;interleaved"),
    ],
)
def test_contiguous_parts_are_views_without_gradient(layer: str, shape: tuple[int, ...], rule: str | None) -> None:
    weight = torch.randn(shape, requires_grad=True)
    for part in split(layer, shape, SplitRules.parse({"*": rule}) if rule else NO_RULES).parts:
        view = part.view(weight)
        assert view.untyped_storage().data_ptr() == weight.untyped_storage().data_ptr()
        assert not view.requires_grad and tuple(view.shape) == part.shape


def test_a_weight_of_another_shape_is_refused() -> None:
    (part,) = split("x", (6, 4)).parts
    with pytest.raises(ValueError, match=r"shape \(4, 6\); expected \(6, 4\)"):
        part.view(torch.zeros(4, 6))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_every_dtype_is_divided(dtype: torch.dtype) -> None:
    weight = torch.ones(12, 4).to(dtype)
    for part in split("x", (12, 4), SplitRules.parse({"*": "q,k,v;heads=2;interleaved"})).parts:
        assert part.view(weight).dtype == dtype and part.shape == (4, 4)


RULES = st.sampled_from(
    [
        None,
        "none",
        "experts",
        "q,k,v",
        "a,b;experts",
        "a,b;axis=1",
        "q,k,v;heads=2;interleaved",
        "q,k,v;heads=4;groups=2",
        "q,k,v;heads=4;groups=2;interleaved",
        "q,k,v;heads=4;groups=2;interleaved;per_head",
        "q,k,v;heads=2;per_head;axis=1",
        "o;heads=4;per_head",
        "q:8,k:4,v:4",
        "a:1,b:2,c:3",
    ]
)
FUSED = ("c_attn", "qkv", "in_proj_weight", "query_key_value", "gate_up_proj", "feed_forward.experts.gate_up_proj")
LAYERS = st.sampled_from([f"{name}{end}" for name in (*FUSED, "fc", "experts.w1", "conv") for end in ("", ".weight")])
SHAPES = st.one_of(
    st.lists(st.integers(1, 24), min_size=2, max_size=4).map(tuple),
    st.tuples(st.sampled_from((2, 4, 8, 12, 16, 24)), st.sampled_from((2, 4, 8, 12, 16, 24))),
    st.integers(1, 8).flatmap(lambda n: st.sampled_from([(n, 3 * n), (3 * n, n), (2, 3 * n, n)])),
)


@settings(deadline=None, max_examples=400)
@given(LAYERS | st.text(), SHAPES, RULES)
def test_each_element_is_in_exactly_one_part(layer: str, shape: tuple[int, ...], rule: str | None) -> None:
    found = split(layer, shape, SplitRules.parse({"*": rule}) if rule else NO_RULES)
    weight = torch.arange(math.prod(shape), dtype=torch.float64).reshape(shape)
    before = weight.clone()
    views = [part.view(weight) for part in found.parts]
    assert [tuple(view.shape) for view in views] == [part.shape for part in found.parts]
    assert torch.equal(torch.cat([view.reshape(-1) for view in views]).sort().values, weight.reshape(-1))
    assert len({part.name for part in found.parts}) == len(found.parts)
    assert (found.kind == "fused") == (len(found.parts) > 1 or found.parts[0].name != "")
    assert torch.equal(weight, before)


SIZES = st.integers(0, 1 << 48) | st.sampled_from([1, 3, 1 << 20, 3 << 40, 1 << 48])
NAMES = (
    st.text() | st.text(st.sampled_from(".:weightcatnqkvrops\0é")) | st.sampled_from([".", "..weight", "weight", ""])
)


@given(NAMES | LAYERS, st.lists(SIZES, min_size=2, max_size=8).map(tuple), RULES)
def test_any_name_and_shape_are_answered_with_few_parts(layer: str, shape: tuple[int, ...], rule: str | None) -> None:
    found = split(layer, shape, SplitRules.parse({"*": rule}) if rule else NO_RULES)
    assert 1 <= len(found.parts) <= MAX_PARTS
    assert sum(part.shape[0] if len(part.shape) == 3 else 1 for part in found.parts) <= MAX_MATRICES
    assert sum(math.prod(part.shape) for part in found.parts) == math.prod(shape)


def test_a_hostile_name_costs_no_time() -> None:
    rules = SplitRules.parse({"*a*a*a*a*a*a*a*a*b": "q,k,v"})
    assert split("a" * 4096, (4, 4), rules).kind == "plain"
    assert split("." * 4096 + "weight", (4, 4)).kind == "plain"
    assert split(".weight" * 1000, (1 << 47, 1)).kind == "plain"
