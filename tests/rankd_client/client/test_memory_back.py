"""What a closed client leaves behind, where nobody collects garbage, as in some trainers."""

from __future__ import annotations

import gc
import weakref
from typing import Any

from absent_daemon import Make, model_of


def test_its_memory_goes_with_it(make: Make) -> None:
    client = make()
    client.push(model_of())
    pusher: Any = client._pusher
    left = {name: weakref.ref(what) for name, what in (("outbox", pusher._outbox), ("arena", pusher._outbox.arena))}
    gc.disable()
    try:
        client.close()
        del pusher, client
        assert {name for name, reference in left.items() if reference() is not None} == set()
    finally:
        gc.enable()
