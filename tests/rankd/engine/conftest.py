import pytest


@pytest.fixture(autouse=True)
def _one_intra_op_thread(one_intra_op_thread: None) -> None:
    """In all of these."""
