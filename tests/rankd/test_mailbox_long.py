"""Which measurements are long."""

from collections import Counter

import numpy as np
import pytest

from rankd.mailbox import Mailbox
from rankd.records import Snapshot


def snapshot(layer: str, shape: tuple[int, ...]) -> Snapshot:
    return Snapshot("@a/1", layer, 1, shape, "float32", "float32", np.zeros(4, np.uint8))


@pytest.mark.parametrize(
    ("layer", "shape", "is_long"),
    [
        ("w", (2048, 2048), True),
        ("w", (1024, 1024), False),
        ("w", (1 << 24, 1), False),
        ("experts", (1000, 64, 64), False),
        ("experts", (4096, 16, 16), False),
        ("experts", (64, 1024, 1024), True),
        ("conv", (2048, 256, 16), True),
    ],
)
def test_a_stack_is_as_long_as_all_its_matrices(layer: str, shape: tuple[int, ...], is_long: bool) -> None:
    """One of its run is under way, and the last slot is kept from its long ones."""
    box = Mailbox(1000, 2, Counter(), connected=lambda: {"@a/1", "@b/1"})
    first, second = snapshot("first", (1, 1)), snapshot(layer, shape)
    box.put(first)
    box.put(second)
    assert box._next() is first
    assert box._next() is (None if is_long else second)
