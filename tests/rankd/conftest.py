from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def one_intra_op_thread() -> Iterator[None]:
    """For what measures in the test's own thread: two of them on busy cores took sixty times as long."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
