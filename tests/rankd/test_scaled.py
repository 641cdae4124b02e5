"""What rows with a scale stand for, against torch's own reading of them."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scaled_rows import SCALED, packed, unpacked

from rankd.scaled import largest_magnitude

FLOATS = st.floats(width=32)
EVERY_CODE = [list(range(256))]


def largest(data: bytes, dtype: str, width: int) -> float:
    return largest_magnitude(np.frombuffer(data, np.uint8).reshape(-1, width + 4), dtype)


@pytest.mark.parametrize("dtype", SCALED)
@given(st.lists(st.tuples(st.binary(min_size=3, max_size=3), FLOATS), min_size=1, max_size=4))
def test_any_bytes_are_as_large_as_torch_reads_them(dtype: str, rows: list[tuple[bytes, float]]) -> None:
    data = packed([list(row) for row, _ in rows], [scale for _, scale in rows])
    values = unpacked(data, dtype, (len(rows), 3))
    found = largest(data, dtype, 3)
    if values.isfinite().all():
        assert found == float(values.abs().max())
    else:
        assert not math.isfinite(found)


@pytest.mark.parametrize("dtype", SCALED)
def test_every_code_by_itself(dtype: str) -> None:
    for code in range(256):
        data = packed([[code]], [1.0])
        value = float(unpacked(data, dtype, (1, 1)).abs())
        assert largest(data, dtype, 1) == value or (math.isnan(value) and math.isnan(largest(data, dtype, 1)))


def test_the_lowest_int8_is_the_largest_of_all() -> None:
    assert largest(packed([[0x80, 0x7F]], [2.0]), "int8", 2) == 256.0


def test_a_product_is_rounded_to_float32_before_it_is_judged() -> None:
    tiny, huge = 2.0**-149, 3e38
    assert largest(packed([[0x01]], [tiny]), "float8_e4m3fn", 1) == 0.0  # 2^-9 of the smallest float32
    assert largest(packed([[0x01]], [tiny]), "int8", 1) == tiny
    assert largest(packed([[0x02]], [huge]), "int8", 1) == math.inf
    assert largest(packed([[0x01]], [-huge]), "int8", 1) == float(np.float32(huge))
    assert not math.isfinite(largest(packed([[0x00]], [math.inf]), "int8", 1))


def test_what_is_read_back_is_float32() -> None:
    assert unpacked(packed(EVERY_CODE, [1.0]), "int8", (1, 256)).dtype is torch.float32
