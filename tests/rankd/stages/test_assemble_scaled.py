"""Matrices whose rows have scales: in pieces, cut anywhere, not finite and all zero."""

import math

import numpy as np
import pytest
from chunks import A, B, assembler, chunk, cut
from hypothesis import given, settings
from hypothesis import strategies as st
from scaled_rows import SCALED, packed

from rankd.records import Snapshot
from rankd_client.wire import Shard, WireError

NAN_CODES = {"int8": [], "float8_e4m3fn": [0x7F, 0xFF], "float8_e5m2": [0x7C, 0x7D, 0x7E, 0x7F, 0xFC, 0xFF]}
TINY = 2.0**-149


def taken(dtype: str, data: bytes, shape: tuple[int, ...], size: int) -> Snapshot:
    assemble = assembler()
    *earlier, last = [assemble.add("r", A, item, 0.0) for item in cut(data, shape, size, dtype=dtype)]
    assert all(added.snapshot is None for added in earlier)
    assert last.snapshot is not None and assemble.num_bytes == 0
    return last.snapshot


@pytest.mark.parametrize("dtype", SCALED)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(1, 30))
@settings(deadline=None)
def test_chunks_may_end_anywhere(dtype: str, rows: int, cols: int, size: int) -> None:
    data = packed([[1 + (row + col) % 100 for col in range(cols)] for row in range(rows)], [0.5] * rows)
    snapshot = taken(dtype, data, (rows, cols), size)
    assert snapshot.data.tobytes() == data
    assert (snapshot.finite, snapshot.zero, snapshot.wire_dtype) == (True, False, dtype)


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("size", [1, 5, 6, 7, 100])
def test_what_is_not_finite_is_noticed_in_any_row(dtype: str, size: int) -> None:
    bad = [([1, 2], scale) for scale in (math.nan, -math.nan, math.inf, -math.inf)]
    bad += [([0, 0], math.nan), ([0, 0], math.inf), ([100, 1], 3.4e38)]
    bad += [([code, 1], scale) for code in NAN_CODES[dtype] for scale in (1.0, 0.0)]
    for codes, scale in bad:
        for row in range(3):
            rows, scales = [[1, 2]] * 3, [1.0] * 3
            rows[row], scales[row] = codes, scale
            snapshot = taken(dtype, packed(rows, scales), (3, 2), size)
            assert (snapshot.finite, snapshot.zero, snapshot.data.nbytes) == (False, False, 0), (codes, scale, row)


@pytest.mark.parametrize("dtype", SCALED)
@pytest.mark.parametrize("size", [1, 5, 100])
def test_only_products_that_are_all_zero_are_zero(dtype: str, size: int) -> None:
    zeros = [([0, 0], 0.0), ([0, 0], 1.0), ([0, 0], -1.0), ([1, 2], 0.0), ([100, 1], -0.0), ([0, 0], TINY)]
    minus_zero = [] if dtype == "int8" else [([0x80, 0], 1.0)]
    for codes, scale in (*zeros, *minus_zero):
        snapshot = taken(dtype, packed([[0, 0], codes], [0.0, scale]), (2, 2), size)
        assert (snapshot.finite, snapshot.zero, snapshot.data.nbytes) == (True, True, 0), (codes, scale)
    for codes, scale in (([1, 0], 1.0), ([0x7B, 0], TINY), ([0x81, 0], -1.0)):
        snapshot = taken(dtype, packed([[0, 0], codes], [0.0, scale]), (2, 2), size)
        assert (snapshot.finite, snapshot.zero) == (True, False), (codes, scale)


def test_a_stack_has_a_scale_for_each_row_of_its_matrices() -> None:
    data = packed([[1] * 16] * 48, [1.0] * 48)
    assert taken("int8", data, (3, 16, 16), 100).data.tobytes() == data
    with pytest.raises(AssertionError):  # as a matrix of three rows it is not whole
        taken("int8", packed([[1] * 256] * 3, [1.0] * 3), (3, 16, 16), 1000)
    flat = packed([[1] * 48] * 3, [1.0] * 3)  # a convolution, its kernel of 3
    assert taken("int8", flat, (3, 16, 3), 100).data.tobytes() == flat


@given(st.permutations(range(6)), st.lists(st.sampled_from([A, B]), min_size=6, max_size=6), st.integers(1, 40))
@settings(deadline=None)
def test_rows_of_several_clients_in_any_order_are_the_matrix(order: list[int], owners: list[bytes], size: int) -> None:
    rows = [packed([[row + 1] * 3], [1.0 + row]) for row in range(6)]
    assemble, snapshot = assembler(), None
    for session in (A, B):
        held = [row for row, owner in zip(order, owners, strict=True) if owner == session]
        shard = Shard(rectangles=tuple((row, row + 1, 0, 3) for row in held))
        for item in cut(b"".join(rows[row] for row in held), (6, 3), size, dtype="int8", shard=shard):
            assert snapshot is None
            snapshot = assemble.add("r", session, item, 0.0).snapshot
    assert snapshot is not None and snapshot.data.tobytes() == b"".join(rows)
    assert assemble.num_bytes == 0


def test_a_shard_that_is_given_up_takes_its_nan_along() -> None:
    assemble = assembler()
    upper, lower = Shard(rectangles=((0, 1, 0, 2),)), Shard(rectangles=((1, 2, 0, 2),))
    good, bad = packed([[1, 2]], [1.0]), packed([[1, 2]], [math.nan])
    fields = {"shape": (2, 2), "dtype": "int8"}
    assert assemble.add("r", A, chunk(bad, shard=upper, **fields), 0.0).snapshot is None
    assert assemble.add("r", A, chunk(good, shard=upper, **fields), 0.0).snapshot is None
    snapshot = assemble.add("r", B, chunk(good, shard=lower, **fields), 0.0).snapshot
    assert snapshot is not None and snapshot.finite


def test_elements_of_one_byte_are_no_way_to_larger_layers() -> None:
    assemble = assembler(max_layer_bytes=4000, max_assembly_bytes=8000, max_mailbox_bytes=8000)
    for dtype, size in (("bfloat16", 4000), ("int8", 2080)):
        item = chunk(np.ones(size, np.uint8).tobytes(), (20, 100), dtype=dtype, layer=dtype)
        assert assemble.add("r", A, item, 0.0).snapshot is not None
        with pytest.raises(WireError, match="layer_too_large"):
            assemble.add("r", A, chunk(b"x", (20, 101), dtype=dtype, layer=f"more {dtype}"), 0.0)
