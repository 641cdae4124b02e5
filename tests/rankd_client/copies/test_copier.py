"""What is remembered of what was copied last."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise

from lots import Tracker, items_of

from rankd_client.arena import Arena
from rankd_client.copies import allocate
from rankd_client.copies.copier import Copier
from rankd_client.lots import Layout
from rankd_client.outbox import Outbox


def test_nothing_is_kept_of_a_model_after_which_another_went() -> None:
    """Two in turn: whoever sees that one is gone has the other in mind."""
    outbox = Outbox(Arena(1 << 16, allocate))
    outbox.grow(1 << 16, 64)
    copier, items = Copier(outbox), items_of()
    copier._layout = Layout(items)
    gone = weakref.ref(items[0].tensor)
    copied, error = copier.copy(items_of(), 1, {})
    assert len(copied) == len(items) and error is None
    del items
    gc.collect()
    assert gone() is None


def test_who_found_no_memory_comes_first_the_next_time() -> None:
    """Or the last of a model would never go where there is a little less than it takes."""
    outbox, items = Outbox(Arena(1 << 16, allocate)), items_of((64, 64, 64))
    outbox.grow(2 * items[0].num_bytes, items[0].num_bytes)
    copier = Copier(outbox)
    skipped: list[set[str]] = []
    for step in range(1, 5):
        why: dict[str, str] = {}
        copied, error = copier.copy(items, step, why)
        assert error is None and set(why.values()) == {"memory"} and len(copied) + len(why) == len(items)
        skipped.append(set(why))
        while (snapshot := outbox.next_unsent()) is not None:
            outbox.sent(snapshot, snapshot.num_bytes, Tracker())
            outbox.settle(snapshot.layer, snapshot.role, step)
    assert all(not before & after for before, after in pairwise(skipped))
