"""The largest magnitude of floats, by their bits alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from chunks import A, assembler, chunk, cut
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from rankd.shards import PIECE_BYTES, largest_without_sign
from rankd.spread import Helpers

ALL_16_BIT = np.arange(1 << 16, dtype=np.uint16)
MASKS = {np.uint16: 0x7FFF, np.uint32: 0x7FFF_FFFF, np.uint64: 0x7FFF_FFFF_FFFF_FFFF}


def largest(bits: npt.NDArray[Any]) -> int:
    return largest_without_sign(bits.view(np.uint8), bits.itemsize)


@pytest.mark.parametrize("beside", [0x0000, 0xBF80])
def test_of_any_16_bits_beside_others(beside: int) -> None:
    """Zeros, subnormals, infinities and NaN of both signs: beside zero, and beside minus one."""
    pairs = np.stack([ALL_16_BIT, np.full_like(ALL_16_BIT, beside)], axis=1)
    found = [largest(pair) for pair in pairs]
    assert found == np.maximum(ALL_16_BIT & 0x7FFF, beside & 0x7FFF).tolist()


@given(st.sampled_from(sorted(MASKS, key=str)).flatmap(lambda kind: arrays(kind, st.integers(1, 50))))
def test_it_is_that_of_each_without_its_sign(bits: npt.NDArray[Any]) -> None:
    assert largest(bits) == int((bits & bits.dtype.type(MASKS[bits.dtype.type])).max())


@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, PIECE_BYTES // 4 - 1, PIECE_BYTES // 4, -1])
def test_what_is_not_finite_is_noticed_in_every_piece_of_a_chunk(at: int, value: float) -> None:
    matrix = np.ones((3, PIECE_BYTES // 4), np.float32)
    matrix.reshape(-1)[at] = value
    added = assembler().add("r", A, chunk(matrix.tobytes(), matrix.shape), 0.0)
    assert added.snapshot is not None and not added.snapshot.finite


@pytest.mark.parametrize("size", [4, PIECE_BYTES - 4, PIECE_BYTES, PIECE_BYTES + 4])
def test_chunks_of_several_pieces_are_stored_as_they_came(size: int) -> None:
    matrix = np.zeros((1, (PIECE_BYTES + size) // 4), np.float32)
    matrix[0, -1] = 1.0
    assemble = assembler()
    *_, added = (assemble.add("r", A, item, 0.0) for item in cut(matrix.tobytes(), matrix.shape, PIECE_BYTES + 4))
    assert added.snapshot is not None and added.snapshot.finite and not added.snapshot.zero
    assert added.snapshot.data.tobytes() == matrix.tobytes()


@pytest.mark.parametrize("at", [0, 3 << 18, (1 << 19) - 1, -1])
def test_several_threads_store_and_notice_the_same(at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.shards.helpers", Helpers(4))
    matrix = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)
    for value in (5.0, np.nan, np.inf):
        matrix.reshape(-1)[at] = value
        added = assembler().add("r", A, chunk(matrix.tobytes(), matrix.shape), 0.0)
        assert added.snapshot is not None and added.snapshot.finite == bool(np.isfinite(value))
        assert added.snapshot.data.tobytes() == (matrix.tobytes() if value == 5.0 else b"")
