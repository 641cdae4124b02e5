"""Non-finite and all-zero matrices are noticed while they come."""

import math

import pytest
import torch
from chunks import FLOATS, A, B, assembler, chunk, cut

from rankd_client.wire import DTYPES, Shard


def values(dtype: str, *numbers: float) -> bytes:
    return torch.tensor(numbers, dtype=getattr(torch, dtype)).view(torch.uint8).numpy().tobytes()


def with_sign_bit(dtype: str, payload: bytes) -> bytes:
    width = DTYPES[dtype].item_bytes
    return b"".join(
        payload[i : i + width - 1] + bytes([payload[i + width - 1] | 0x80]) for i in range(0, len(payload), width)
    )


def noticed(dtype: str) -> dict[str, bytes]:
    """Elements that make a matrix non-finite."""
    nan = values(dtype, math.nan)
    smallest_nan = (int.from_bytes(values(dtype, math.inf), "little") + 1).to_bytes(len(nan), "little")
    infinities = {"inf": values(dtype, math.inf), "-inf": values(dtype, -math.inf)}
    return {"nan": nan, "-nan": with_sign_bit(dtype, nan), "signalling nan": smallest_nan, **infinities}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("where", ["first chunk", "last chunk", "first shard", "last shard"])
def test_nonfinite_is_noticed_wherever_it_is(dtype: str, where: str) -> None:
    for name, element in noticed(dtype).items():
        good = values(dtype, 1.0, -2.0)
        bad = element + values(dtype, 1.0)
        first, last = (bad, good) if "first" in where else (good, bad)
        assemble = assembler()
        if "chunk" in where:
            chunks = [(A, item) for item in cut(first + last, (2, 2), len(first), dtype=dtype)]
        else:
            parts = zip((A, B), (first, last), (((0, 2),), ((2, 4),)), strict=True)
            chunks = [(s, chunk(part, (2, 2), dtype=dtype, shard=Shard(ranges=r))) for s, part, r in parts]
        *_, added = [assemble.add("r", session, item, 0.0) for session, item in chunks]
        assert added.snapshot is not None, name
        assert (added.snapshot.finite, added.snapshot.zero, added.snapshot.data.nbytes) == (False, False, 0), name
        assert assemble.num_bytes == 0


@pytest.mark.parametrize("dtype", FLOATS)
def test_only_zeros_of_either_sign_are_zero(dtype: str) -> None:
    limits = torch.finfo(getattr(torch, dtype))
    width = DTYPES[dtype].item_bytes
    denormal = (1).to_bytes(width, "little")
    zero, plenty = values(dtype, 0.0), values(dtype, limits.max)
    for elements, is_zero in (
        (zero * 4, True),
        (with_sign_bit(dtype, zero) * 4, True),
        (zero * 2 + with_sign_bit(dtype, zero) * 2, True),
        (zero * 3 + denormal, False),
        (with_sign_bit(dtype, denormal) + zero * 3, False),
        (plenty + with_sign_bit(dtype, plenty) + zero * 2, False),
    ):
        assemble = assembler()
        *_, added = [assemble.add("r", A, item, 0.0) for item in cut(elements, (2, 2), 2 * width, dtype=dtype)]
        assert added.snapshot is not None
        assert (added.snapshot.finite, added.snapshot.zero) == (True, is_zero)
        assert added.snapshot.data.tobytes() == (b"" if is_zero else elements)
