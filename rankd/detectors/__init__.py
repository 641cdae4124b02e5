"""Detectors: one number of one layer, reading by reading → a Verdict at each change of state.

Extension point: a further rule is a class with this contract and a line in DETECTORS; the conformance suite
(tests/rankd/detectors/test_conformance.py) then runs over it by itself. Pure: no clock, no randomness, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rankd.detectors.ema import EmaDropDetector
from rankd.detectors.log_time import LogTimeDetector, Scale
from rankd.records import Verdict

__all__ = ["DETECTORS", "Detector"]


class Detector(Protocol):
    """What every rule does."""

    @property
    def rule(self) -> str:
        """Its stable name, which its alerts carry."""

    @property
    def metric(self) -> str:
        """The name of the metric that it reads, a key of `Measurement.metrics`."""

    def update(self, value: float | None, step: int) -> Verdict | None:
        """The reading of `step`, which is later than every one since the last `rewind`. A value that is None or not
        finite changes nothing. A Verdict at a change of state, else None."""

    def rewind(self, step: int) -> Verdict | None:
        """The run went back and the next reading is of `step`. A Verdict if that ends a firing alert."""

    def state(self) -> dict[str, Any]:
        """All it remembers, as plain JSON or msgpack."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave: from here on both answer alike, bit for bit."""


DETECTORS: dict[str, Callable[[], Detector]] = {
    "effective_rank_drop": lambda: LogTimeDetector(
        "effective_rank_drop", "effective_rank", direction=-1, scales=(Scale(1.05, 0.06), Scale(1.15, 0.08))
    ),
    "spectral_norm_growth": lambda: LogTimeDetector(
        "spectral_norm_growth", "spectral_norm", direction=+1, scales=(Scale(1.15, 0.35),)
    ),
    "ema_drop": EmaDropDetector,
}
"""Every rule by its name, made with its defaults. Measured on labelled runs in docs/detection.md."""
