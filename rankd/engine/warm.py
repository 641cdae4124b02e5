"""What the norms tier starts from: the vector that showed σ₁ the last time."""

from __future__ import annotations

import threading
from collections import OrderedDict

import torch

MAX_WARM_BYTES = 64 << 20
"""2 bytes an element: 3,700 layers of 8,192."""

ENTRY_BYTES = 1024
"""What an entry costs beside its elements and its key, so that tiny ones are bounded in number."""


class WarmStarts:
    """The newest vector of each matrix, by its key; the longest unused go first. Any thread may call."""

    def __init__(self, max_bytes: int = MAX_WARM_BYTES) -> None:
        self._max_bytes = max_bytes
        self._vectors: OrderedDict[str, torch.Tensor] = OrderedDict()
        self._num_bytes = 0
        self._lock = threading.Lock()

    def get(self, key: str) -> torch.Tensor | None:
        """(r,) bfloat16 on the CPU."""
        with self._lock:
            return self._vectors.get(key)

    def put(self, key: str, vector: torch.Tensor) -> None:
        kept = vector.to("cpu", torch.bfloat16, copy=True)
        with self._lock:
            if (former := self._vectors.pop(key, None)) is not None:
                self._num_bytes -= _cost(key, former)
            self._vectors[key] = kept
            self._num_bytes += _cost(key, kept)
            while self._num_bytes > self._max_bytes:
                self._num_bytes -= _cost(*self._vectors.popitem(last=False))


def _cost(key: str, vector: torch.Tensor) -> int:
    return vector.nbytes + len(key) + ENTRY_BYTES
