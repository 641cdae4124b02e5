"""A copy that its client has taken back is not taken, and nothing of it is kept."""

import numpy as np
import pytest
from chunks import HALF, A, B, assembler, chunk, cut

from rankd_client.wire import Shard, WireError


def taken_back() -> None:
    raise WireError("loan_ended", "taken back")


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_torn_chunk_drops_all_of_its_shard(at: int) -> None:
    assemble = assembler()
    payload = np.arange(6, dtype=np.float32).tobytes()
    parts = list(cut(payload, (2, 3), 8))
    for part in parts[:at]:
        assemble.add("r", A, part, 0.0)
    with pytest.raises(WireError, match="loan_ended"):
        assemble.add("r", A, parts[at], 0.0, confirm=taken_back)
    assert assemble.num_bytes == 0
    for part in parts[at + 1 :]:
        with pytest.raises(WireError, match="chunk_order"):
            assemble.add("r", A, part, 0.0)
    *first, last = parts  # sent anew, it is neither a repeat nor in anybody's way
    for part in first:
        assert assemble.add("r", A, part, 0.0).snapshot is None
    snapshot = assemble.add("r", A, last, 0.0).snapshot
    assert snapshot is not None and bytes(snapshot.data) == payload


def test_torn_values_leave_no_mark_and_shards_of_others_stay() -> None:
    assemble = assembler()
    nan = np.full(2, np.nan, np.float32).tobytes()
    assemble.add("r", B, chunk(bytes(8), (2, 2), shard=HALF), 0.0)
    rest = Shard(ranges=((2, 4),))
    with pytest.raises(WireError, match="loan_ended"):
        assemble.add("r", A, chunk(nan, (2, 2), shard=rest), 0.0, confirm=taken_back)
    assert assemble.num_bytes == 8
    snapshot = assemble.add("r", A, chunk(np.ones(2, np.float32).tobytes(), (2, 2), shard=rest), 0.0).snapshot
    assert snapshot is not None and snapshot.finite and not snapshot.zero


def test_it_is_asked_after_the_bytes_were_copied() -> None:
    assemble = assembler()
    memory = bytearray(np.ones(4, np.float32).tobytes())

    def overwrite() -> None:
        memory[:] = bytes(16)

    snapshot = assemble.add("r", A, chunk(memoryview(memory), (2, 2)), 0.0, confirm=overwrite).snapshot
    assert snapshot is not None and bytes(snapshot.data) == np.ones(4, np.float32).tobytes()
