"""What is known of fused weights by their names, where the user said nothing."""

from __future__ import annotations

from dataclasses import replace

from rankd.parts.rules import Rule, parse_rule

EQUAL_QKV = frozenset({"c_attn", "qkv", "to_qkv", "qkv_proj", "Wqkv", "in_proj_weight"})
"""q, k and v one after the other: GPT-2 and nanoGPT, timm, Phi-3 and vLLM, MPT and flash-attn, MultiheadAttention."""

UNKNOWN_QKV = frozenset({"query_key_value", "linear_qkv", "wqkv"})
"""Models disagree: GPT-NeoX, BLOOM, Falcon, Megatron and InternLM2 interleave by head or group, ChatGLM and gpt-fast do
not. Nothing in the shape tells."""

GATE_UP = "gate_up_proj"

_WRAPPERS = frozenset({"weight", "base_layer", "weight_orig", "original", "parametrizations"})
"""What torch and peft put after the name of the module that fuses."""

_QKV = parse_rule("*", "q,k,v")
_GATE_UP = parse_rule("*", "gate,up;axis=0")
_GATE_UP_COLUMNS = parse_rule("*", "gate,up;axis=1")
_LLAMA_4 = "feed_forward.experts.gate_up_proj"


def default_rule(layer: str, rows: int, cols: int, stacked: bool) -> tuple[Rule | None, str | None]:
    """The rule for a rows × cols matrix of this name (for each of a stack of them), and what the user should know: why
    there is none although the name promises parts, or what was assumed."""
    name = fused_name(layer)
    if name in UNKNOWN_QKV:
        return None, f"{name} is interleaved in some models and not in others; {_advice('q,k,v;heads=N;interleaved')}"
    if name in EQUAL_QKV:
        if 3 * min(rows, cols) == max(rows, cols):
            return replace(_QKV, axis=0 if rows > cols else 1), None
        return None, f"{rows} × {cols} is not three square parts; {_advice('q,k,v;heads=N;groups=N or q:N,k:N,v:N')}"
    if name != GATE_UP:
        return None, None
    if stacked and layer.endswith(_LLAMA_4) and cols % 2 == 0:
        return _GATE_UP_COLUMNS, None
    if rows % 2:
        return None, f"{rows} rows are not two equal parts; {_advice('gate,up;axis=1')}"
    # transformers 5 keeps experts as linear layers lie, (outputs, inputs); gpt-oss has the opposite, and no sign of it.
    assumed = f"taken as gate above up in each expert; if columns hold them, {_advice('gate,up;axis=1')}"
    return _GATE_UP, assumed if stacked else None


def fused_name(layer: str) -> str | None:
    """The name by which a layer is known as fused, None if it is not."""
    names = layer.split(".")
    while len(names) > 1 and names[-1] in _WRAPPERS:
        names.pop()
    known = names[-1] in EQUAL_QKV or names[-1] in UNKNOWN_QKV or names[-1] == GATE_UP
    return names[-1] if known else None


def _advice(rule: str) -> str:
    return f"a split rule such as {rule} tells"
