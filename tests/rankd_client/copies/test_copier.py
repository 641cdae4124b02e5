"""What is remembered of what was copied last."""

from __future__ import annotations

import gc
import weakref

from lots import items_of

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
