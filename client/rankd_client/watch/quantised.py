"""Weights in fewer bits than torch computes in: of torchao, bitsandbytes, Transformer Engine, torch's own. Each is a
tensor that can tell its values, which it does when it is copied. None of these packages is imported here."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankd_client.watch.unfit import SOURCE_DTYPES

if TYPE_CHECKING:
    import torch

MAX_NAME_CHARS = 32
"""Of a source dtype, on the wire."""

FORMATS = ("torchao", "transformer_engine")
"""Packages whose tensors hold nothing that could be read as it is."""

FLOAT8 = {"E4M3": "float8_e4m3fn", "E5M2": "float8_e5m2"}
"""In the names that Transformer Engine gives its types."""


@dataclass(frozen=True, slots=True)
class Quantised:
    """A tensor of this `shape`, whose values `decode(tensor.detach())` gives in the dtype `carrier`. `source_dtype`:
    what it is kept in, such as "int8", "nf4" or "float8_e4m3fn"."""

    shape: tuple[int, ...]
    source_dtype: str
    carrier: str
    decode: Callable[[Any], torch.Tensor]

    @property
    def decoded_bytes(self) -> int:
        item_bytes = {"float64": 8, "float32": 4}.get(self.carrier, 2)
        return math.prod(self.shape) * item_bytes


def quantised(tensor: Any, owner: Callable[[], Any] = lambda: None) -> Quantised | str | None:
    """How to read `tensor`; why it cannot be read; None where it is no quantised one. `owner` gives the module that it
    is a parameter of, if there is one."""
    import torch

    kind = type(tensor)
    if kind in (torch.Tensor, torch.nn.Parameter):
        if not tensor.is_quantized:
            return None
        return Quantised(tuple(tensor.shape), _name(tensor.dtype), "float32", torch.dequantize)
    if hasattr(tensor, "device_mesh"):
        return None  # a DTensor, of whatever
    if (state := getattr(tensor, "quant_state", None)) is not None:
        return _four_bits(state)
    if hasattr(tensor, "SCB"):
        return _eight_bits(tensor, owner)
    if callable(original := getattr(kind, "get_original_weight", None)):
        return Quantised(tuple(tensor.shape), "nf4", _carrier(tensor), original)  # torchao's NF4Tensor
    if getattr(kind, "dequantize", None) is not torch.Tensor.dequantize:
        return Quantised(tuple(tensor.shape), _source_dtype(tensor), _carrier(tensor), kind.dequantize)
    return f"{kind.__name__} has no dequantize()" if kind.__module__.split(".")[0] in FORMATS else None


def _four_bits(state: Any) -> Quantised | str:
    """bitsandbytes' Params4bit: two values a byte, and what else it takes in its `quant_state`."""
    functional = sys.modules.get("bitsandbytes.functional")
    if functional is None:
        return "4 bits of an unknown kind"
    return Quantised(
        tuple(state.shape),
        _name(state.quant_type),
        _name(state.dtype),
        lambda data: functional.dequantize_4bit(data, state),
    )


def _eight_bits(tensor: Any, owner: Callable[[], Any]) -> Quantised | str | None:
    """bitsandbytes' Int8Params: whole numbers, and a scale for each row, which the first forward pass moves from the
    parameter to its module."""
    import torch

    if tensor.dtype != torch.int8:
        return None  # as it was before it was moved to its device, or `has_fp16_weights`
    scales = tensor.SCB if tensor.SCB is not None else getattr(getattr(owner(), "state", None), "SCB", None)
    if scales is None:
        return "int8 without its scales, which the module has: push the module"

    def decode(data: torch.Tensor) -> torch.Tensor:
        return data.to(torch.float32).mul_(scales.detach().view(-1, 1) / 127)

    return Quantised(tuple(tensor.shape), "int8", "float32", decode)


def _carrier(tensor: Any) -> str:
    name = _name(tensor.dtype)
    return name if name in SOURCE_DTYPES else "float32"


def _source_dtype(tensor: Any) -> str:
    """What the elements are kept in, as far as the tensor tells; else the name of its type."""
    for attribute in ("_fp8_dtype", "_fp4_dtype"):  # Transformer Engine
        told = str(getattr(tensor, attribute, ""))
        if (found := next((name for key, name in FLOAT8.items() if key in told), None)) is not None:
            return found
    low, high = getattr(tensor, "quant_min", None), getattr(tensor, "quant_max", None)
    if isinstance(low, int) and isinstance(high, int):
        return f"int{(high - low).bit_length()}"
    for holder in (tensor, getattr(tensor, "tensor_impl", None)):
        for attribute in ("target_dtype", "qdata", "int_data", "float8_data"):
            found = getattr(holder, attribute, None)
            if found is not None:
                return _name(getattr(found, "dtype", found))
    return _name(type(tensor).__name__.lower().removesuffix("tensor") or "unknown")


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")[:MAX_NAME_CHARS]
