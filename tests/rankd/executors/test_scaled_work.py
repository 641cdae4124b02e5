"""Snapshots whose rows have scales, as executors read them."""

import numpy as np
import pytest
import torch
from scaled_rows import SCALED, packed, unpacked
from works import measured

from rankd.executors import Work
from rankd.records import Snapshot

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
devices = pytest.mark.parametrize("device", ["cpu", pytest.param("cuda:0", marks=needs_cuda)])
SHAPES = [(5, 7), (1, 1), (3, 4, 2, 2), (2, 16, 17)]


def snapshot(dtype: str, shape: tuple[int, ...], source_dtype: str = "float32") -> Snapshot:
    """Of any finite elements."""
    random = np.random.default_rng(1)
    width = shape[-1] if len(shape) == 3 else int(np.prod(shape[1:]))
    rows = int(np.prod(shape)) // width
    codes = random.integers(0, 0x7B, (rows, width)) | random.choice([0, 0x80], (rows, width))
    data = packed(codes.tolist(), (10.0 ** random.uniform(-30, 30, rows)).tolist())
    return Snapshot("r", "w", 1, shape, dtype, source_dtype, np.frombuffer(bytearray(data), np.uint8))


@devices
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", SCALED)
def test_values_are_element_times_scale(dtype: str, shape: tuple[int, ...], device: str) -> None:
    item = snapshot(dtype, shape)
    weight = Work(item).on(torch.device(device))
    assert weight.tensor.dtype is torch.float32 and weight.tensor.is_contiguous()
    assert torch.equal(weight.tensor.cpu(), unpacked(item.data.tobytes(), dtype, shape))
    assert (weight.wire_dtype, weight.source_dtype, weight.shape) == (dtype, "float32", shape)


@pytest.mark.parametrize("dtype", SCALED)
def test_a_row_says_what_the_wire_added(dtype: str) -> None:
    (part,) = measured("inline", Work(snapshot(dtype, (40, 30))))
    floor = part.reading.further["wire_noise_floor"]
    assert isinstance(floor, float) and floor > 0
