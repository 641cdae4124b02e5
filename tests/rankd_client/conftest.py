from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def two_intra_op_threads() -> Iterator[None]:
    """For what is to leave their number as it was: tests have one, and so has a copy."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)
