"""The fixed dtype table. Network bytes choose a code from it, never a name to be looked up in torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from rankd_client.wire.errors import WireError
from rankd_client.wire.limits import MIN_STACK_SIDE, PROTOCOL_VERSION, SCALE_BYTES, SCALED_VERSION


@dataclass(frozen=True, slots=True)
class Dtype:
    """An element type on the wire, little-endian. Where it is `scaled`, each row's elements are followed by the row's
    scale, a float32; `item_bytes` excludes it. `reserved`: no version of the protocol has it yet."""

    code: int
    name: str
    item_bytes: int
    reserved: bool = False
    scaled: bool = False

    @property
    def version(self) -> int:
        """Of the protocol, the first that carries it."""
        return SCALED_VERSION if self.scaled else PROTOCOL_VERSION

    def num_bytes(self, num_elements: int, shape: tuple[int, ...]) -> int:
        """On the wire, of `num_elements` of a tensor of this shape: whole rows of it, where there are scales."""
        num_scales = num_elements // row_elements(shape) if self.scaled else 0
        return num_elements * self.item_bytes + num_scales * SCALE_BYTES


def row_elements(shape: tuple[int, ...]) -> int:
    """How many elements of a tensor of this shape share a scale: a row of its matrix, or of its matrices, which what
    looks like a stack of them is measured as."""
    is_stack = len(shape) == 3 and min(shape[1:]) >= MIN_STACK_SIDE
    return shape[2] if is_stack else math.prod(shape[1:])


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype(1, "float64", 8),
        Dtype(2, "float32", 4),
        Dtype(3, "float16", 2),
        Dtype(4, "bfloat16", 2),
        Dtype(5, "float8_e4m3fn", 1, scaled=True),
        Dtype(6, "float8_e5m2", 1, scaled=True),
        Dtype(7, "int8", 1, scaled=True),
        Dtype(8, "uint8", 1, reserved=True),
    )
}
LARGEST = {"int8": 127.0, "float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}
"""What a client scales the largest magnitude of a row to. int8's -128 is not used: it has no counterpart."""

_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


def dtype_by_code(code: int, version: int = PROTOCOL_VERSION) -> Dtype:
    """The dtype that `code` means in a version of the protocol. Raises WireError."""
    dtype = _BY_CODE.get(code)
    if dtype is None:
        raise WireError("unknown_dtype", f"dtype code {code}; expected one of {sorted(_BY_CODE)}")
    if dtype.reserved or dtype.version > version:
        raise WireError("reserved_dtype", f"dtype code {code} ({dtype.name}) is reserved in version {version}")
    return dtype
