"""What a client holds for a daemon that is not there."""

from __future__ import annotations

import torch

from rankd_client import Client


def queued(client: Client) -> dict[str, torch.Tensor]:
    """Layer → its values as they would be sent (of dtypes without scales), each in the newest push's copy."""
    assert client._pusher is not None
    copies: dict[str, torch.Tensor] = {}
    for snapshot in client._pusher._outbox._queue.values():
        assert snapshot.written and snapshot.arrived()
        data = torch.frombuffer(bytearray(snapshot.region.view), dtype=getattr(torch, snapshot.dtype))
        copies[snapshot.layer] = data.view(snapshot.shape)
    return copies
