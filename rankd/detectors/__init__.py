"""Detectors: one number of one layer, reading by reading → a Verdict at each change of state.

Extension point: a further rule is a class with this contract, a line in DETECTORS and its settings in DetectConfig; the
conformance suite (tests/rankd/detectors/test_conformance.py) then runs over it by itself. Pure: no clock, no
randomness, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rankd.detectors.config import DEFAULT_CONFIG, DetectConfig
from rankd.detectors.ema import EmaDropDetector
from rankd.detectors.log_time import LogTimeDetector
from rankd.detectors.notices import SEEN, Notice
from rankd.detectors.precision import Precision, precision_of
from rankd.records import Severity, Verdict

__all__ = [
    "DEFAULT_CONFIG",
    "DETECTORS",
    "DetectConfig",
    "Detector",
    "Notice",
    "Precision",
    "make_detectors",
    "make_notices",
    "precision_of",
]


class Detector(Protocol):
    """What every rule does."""

    @property
    def rule(self) -> str:
        """Its stable name, which its alerts carry."""

    @property
    def metric(self) -> str:
        """The name of the metric that it reads, a key of `Measurement.metrics`."""

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides, besides the readings, what it remembers and when it speaks. Not its severity."""

    def update(self, value: float | None, step: int, precision: Precision | None = None) -> Verdict | None:
        """The reading of `step`, which is later than every one since the last `rewind`. A value that is None or not
        finite changes nothing, except that look-backs over what was NOT_READ are known to be long. What may be error,
        by the `precision` of this reading and of those it is compared with, raises nothing. A Verdict at a change of
        state, else None."""

    def rewind(self, step: int) -> Verdict | None:
        """The run went back and the next reading is of `step`. A Verdict if that ends a firing alert."""

    def state(self) -> dict[str, Any]:
        """All it remembers, as plain msgpack: numbers, strings, lists; columns of numbers as little-endian bytes."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state` gave under the same settings: from here on both answer alike, bit for bit."""

    def adopt(self, state: Mapping[str, Any]) -> None:
        """Takes over, from a detector of the same rule with other settings, the readings that are still of use. It does
        not fire afterwards."""


DETECTORS: dict[str, Callable[[DetectConfig, Severity], Detector]] = {
    "effective_rank_drop": lambda config, severity: LogTimeDetector(
        "effective_rank_drop", "effective_rank", -1, config.effective_rank_drop_scales, severity, config.readings
    ),
    "spectral_norm_growth": lambda config, severity: LogTimeDetector(
        "spectral_norm_growth", "spectral_norm", +1, config.spectral_norm_growth_scales, severity, config.readings
    ),
    "ema_drop": lambda config, severity: EmaDropDetector(
        severity, config.ema_alpha, config.ema_threshold, config.ema_window
    ),
}
"""Every rule that reads a metric, by its name. Measured on labelled runs in docs/detection.md."""


def make_detectors(config: DetectConfig) -> dict[str, Detector]:
    """The detectors of one layer, by rule, without those that are off."""
    made = {}
    for rule, make in DETECTORS.items():
        if (severity := config.severity(rule)) != "off":
            made[rule] = make(config, severity)
    return made


def make_notices(config: DetectConfig, role: str = "weight") -> dict[str, Notice]:
    """The notices of one layer's tensors of a role, by rule, without those that are off."""
    made = {}
    for rule in SEEN:
        if (severity := config.severity(rule)) != "off":
            made[rule] = Notice(rule, severity, role)
    return made
