"""The fixed dtype table. Network bytes choose a code from it, never a name to be looked up in torch."""

from __future__ import annotations

from dataclasses import dataclass

from rankd_client.wire.errors import WireError


@dataclass(frozen=True, slots=True)
class Dtype:
    """An element type on the wire, little-endian. `item_bytes` excludes per-row scales, which the reserved ones add."""

    code: int
    name: str
    item_bytes: int
    reserved: bool = False


DTYPES: dict[str, Dtype] = {
    dtype.name: dtype
    for dtype in (
        Dtype(1, "float64", 8),
        Dtype(2, "float32", 4),
        Dtype(3, "float16", 2),
        Dtype(4, "bfloat16", 2),
        Dtype(5, "float8_e4m3fn", 1, reserved=True),
        Dtype(6, "float8_e5m2", 1, reserved=True),
        Dtype(7, "int8", 1, reserved=True),
        Dtype(8, "uint8", 1, reserved=True),
    )
}
_BY_CODE = {dtype.code: dtype for dtype in DTYPES.values()}


def dtype_by_code(code: int) -> Dtype:
    dtype = _BY_CODE.get(code)
    if dtype is None:
        raise WireError("unknown_dtype", f"dtype code {code}; expected one of {sorted(_BY_CODE)}")
    if dtype.reserved:
        raise WireError("reserved_dtype", f"dtype code {code} ({dtype.name}) is reserved")
    return dtype
