"""LoRA: a weight's change is the product of two thin factors, B @ A. Its spectrum is had without forming it."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Literal

import torch

from rankd.records import Snapshot

Side = Literal["A", "B"]

FACTORS: dict[str, tuple[str, Side]] = {
    "lora_A": ("lora_BA", "A"),
    "lora_B": ("lora_BA", "B"),
    "lora_embedding_A": ("lora_embedding_BA", "A"),
    "lora_embedding_B": ("lora_embedding_BA", "B"),
    "lora_a": ("lora_ba", "A"),
    "lora_b": ("lora_ba", "B"),
}
"""What peft and loralib, peft for embeddings, and torchtune call a factor → what the product is called, and which
factor it is: A is (r, n), B is (m, r)."""

ENTRY_BYTES = 1024
"""What a waiting factor costs beside its data, so that tiny ones are bounded in number."""


def lora_base(layer: str) -> tuple[str, Side] | None:
    """The name of the product that `layer` is a factor of, and which factor; None if it is none. The last part of the
    name that says so counts: `q_proj.lora_A.default.weight` → (`q_proj.lora_BA.default.weight`, "A")."""
    names = layer.split(".")
    for index in range(len(names) - 1, -1, -1):
        if (factor := FACTORS.get(names[index])) is not None:
            product, side = factor
            return ".".join([*names[:index], product, *names[index + 1 :]]), side
    return None


def lora_core(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """A small matrix with the nonzero singular values of `b @ a`, in float64 on the factors' device.

    `a` is (r, n), `b` is (m, r), of any floating dtype; factors of more dimensions, as those of convolutions, are taken
    as (size(0), -1). With b = Q R and aᵀ = Q' R', b @ a = Q (R R'ᵀ) Q'ᵀ, and Q, Q' keep singular values: the result is
    R R'ᵀ of shape (min(m, r), min(n, r)), for O((m + n) r²) operations and with errors of the order of 1e-16 · ‖a‖ ‖b‖.
    Each factor is divided by its largest magnitude first: a square of 1e-200 is nothing.
    Raises ValueError for factors that do not fit or are not finite.
    """
    if a.ndim < 2 or b.ndim < 2 or a.numel() == 0 or b.numel() == 0 or b[0].numel() != a.shape[0]:
        raise ValueError(f"lora factors a, b are {tuple(a.shape)}, {tuple(b.shape)}; expected (r, n), (m, r)")
    upper_a, scale_a = _triangle(a.flatten(1).T)
    upper_b, scale_b = _triangle(b.flatten(1))
    return (upper_b @ upper_a.T) * scale_a * scale_b


def _triangle(tall: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """R of the QR decomposition of `tall` over its largest magnitude, and that magnitude."""
    double = tall.detach().to(torch.float64)
    low, high = torch.aminmax(double)
    peak = torch.maximum(low.neg(), high)
    if not bool(torch.isfinite(peak)):
        raise ValueError(f"a lora factor has a largest magnitude of {float(peak)}; expected finite numbers")
    if bool(peak == 0):
        return double.new_zeros(min(double.shape), double.shape[1]), peak
    _, upper = torch.linalg.qr(double / peak, mode="r")
    return upper, peak


class Pairs:
    """Waits with one factor of a product for the other of the same step. Pure; the newest of each factor is kept.

    At most `max_bytes` wait, the data and ENTRY_BYTES for each: beyond that the longest waiting go, counted as
    `dropped_lora_factors`. Two factors that do not fit each other are counted as `dropped_lora_misfits`.
    """

    def __init__(self, max_bytes: int, counters: Counter[str]) -> None:
        self.max_bytes = max_bytes
        self.counters = counters
        self.num_bytes = 0
        self._waiting: OrderedDict[tuple[str, str, str, Side], Snapshot] = OrderedDict()
        """(run, role, product, side) → factor, the longest waiting first."""

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, snapshot: Snapshot) -> tuple[Snapshot, Snapshot] | None:
        """Both factors of a product, (A, B), once `snapshot` is the second; None while one is missing, and for what is
        no factor. A factor that is known to be non-finite or all-zero has no product to measure: nothing waits for it
        any longer."""
        factor = lora_base(snapshot.layer)
        if factor is None or snapshot.role != "weight":  # two gradients have no product that means anything
            return None
        product, side = factor
        own = (snapshot.run, snapshot.role, product, side)
        other = (snapshot.run, snapshot.role, product, _other(side))
        self._take(own)
        if snapshot.noticed:
            self._take(other)
            return None
        waiting = self._waiting.get(other)
        if waiting is None or waiting.step != snapshot.step:
            self._wait(own, snapshot)
            return None
        self._take(other)
        a, b = (snapshot, waiting) if side == "A" else (waiting, snapshot)
        if b.cols != a.rows:
            self.counters["dropped_lora_misfits"] += 1
            return None
        return a, b

    def _wait(self, key: tuple[str, str, str, Side], snapshot: Snapshot) -> None:
        self._waiting[key] = snapshot
        self.num_bytes += _cost(snapshot)
        while self.num_bytes > self.max_bytes:
            self._take(next(iter(self._waiting)))
            self.counters["dropped_lora_factors"] += 1

    def _take(self, key: tuple[str, str, str, Side]) -> None:
        snapshot = self._waiting.pop(key, None)
        if snapshot is not None:
            self.num_bytes -= _cost(snapshot)


def _other(side: Side) -> Side:
    return "B" if side == "A" else "A"


def _cost(snapshot: Snapshot) -> int:
    return snapshot.data.nbytes + ENTRY_BYTES
