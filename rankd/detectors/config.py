"""What the rules may be told: the table [detect]."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from rankd.detectors.ema import RankTrendDetector
from rankd.detectors.log_time import Readings, Scale
from rankd.records import SEVERITIES, Severity

RuleSeverity = Severity | Literal["off"]
RULE_SEVERITIES = (*SEVERITIES, "off")

ROLES = ("weight", "update", "gradient", "feature")

AT_MOST: dict[str, dict[str, Severity]] = {
    "feature": {"zero": "warning", "spectral_norm_growth": "info"},
    "gradient": {"nonfinite": "warning", "zero": "info"},
    "update": {"nonfinite": "warning", "zero": "info"},
}
"""What is less of an alarm than it is of weights: a residual branch that begins with zeros, features that grow as they
are learnt, steps that loss scaling leaves out because of Inf, a layer that is frozen."""

MAX_RATIO = 10.0
"""Of a scale. A layer's memory reaches back further than step/ratio: ten times is nearly all of a run."""
MAX_SCALES = 8
MAX_READINGS = 1000
"""In a row. All of them are compared at each reading of a layer whose alert is on."""


@dataclass(frozen=True, slots=True)
class DetectConfig:
    """The settings of all rules; the defaults are measured in docs/detection.md.

    A key with the name of a rule (`ema` for `ema_drop`) is its severity, or "off". Raises ValueError naming the key,
    its value and what was expected.
    """

    ema: RuleSeverity = "info"
    """Info by default because it fires in most healthy runs."""
    ema_alpha: float = 0.1
    ema_threshold: float = 0.2
    ema_window: int = 100

    effective_rank_drop: RuleSeverity = "warning"
    effective_rank_drop_scales: tuple[Scale, ...] = (Scale(1.05, 0.06), Scale(1.15, 0.08))
    """Pairs of a ratio and a threshold: against the reading at step/ratio, the change of the logarithm that counts."""

    spectral_norm_growth: RuleSeverity = "warning"
    spectral_norm_growth_scales: tuple[Scale, ...] = (Scale(1.15, 0.35),)

    min_readings: int = 5
    """Before the rules with scales judge anything."""
    on_readings: int = 3
    """In a row beyond a threshold, to fire."""
    off_readings: int = 20
    """In a row near the reference, or near one another, to end."""

    nonfinite: RuleSeverity = "critical"
    zero: RuleSeverity = "critical"
    baseline_reset: RuleSeverity = "info"

    judged_roles: tuple[str, ...] = ("weight", "feature")
    """Those whose metrics the rules read; of others only what is not finite or all zero is told."""
    feature_effective_rank_drop_scales: tuple[Scale, ...] = (Scale(1.15, 0.2), Scale(1.5, 0.4))
    """In the place of effective_rank_drop_scales: wider, as healthy features lose half of it in their first steps."""

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if item.name.endswith("_scales"):
                object.__setattr__(self, item.name, _scales(item.name, value))
            elif item.name.endswith("_readings"):
                _check_count(item.name, value)
            elif item.name == "judged_roles":
                object.__setattr__(self, item.name, _roles(item.name, value))
            elif isinstance(item.default, str) and value not in RULE_SEVERITIES:
                raise ValueError(f"{item.name} is {value!r}; expected one of {', '.join(RULE_SEVERITIES)}")
        try:
            RankTrendDetector(self.ema_alpha, self.ema_threshold, self.ema_window)
        except ValueError as error:
            raise ValueError(f"ema_alpha, ema_threshold or ema_window: {error}") from None

    def severity(self, rule: str) -> RuleSeverity:
        severity: RuleSeverity = getattr(self, "ema" if rule == "ema_drop" else rule)
        return severity

    def of_role(self, role: str) -> DetectConfig:
        """The settings for a layer's tensors of this role, as if it were its weights."""
        if role == "weight" and role in self.judged_roles:
            return self
        most = AT_MOST.get(role, {})
        milder: dict[str, Any] = {rule: _milder(self.severity(rule), severity) for rule, severity in most.items()}
        if role == "feature":
            milder |= {"ema": "off", "effective_rank_drop_scales": self.feature_effective_rank_drop_scales}
        if role not in self.judged_roles:
            milder |= dict.fromkeys(("ema", "effective_rank_drop", "spectral_norm_growth"), "off")
        return replace(self, **milder)

    def recorded(self) -> dict[str, Any]:
        """For a state: what came later only where it says something, so that older states stay what they were."""
        later = {"judged_roles", "feature_effective_rank_drop_scales"}
        known = asdict(self)
        return {
            item.name: known[item.name]
            for item in fields(self)
            if item.name not in later or getattr(self, item.name) != item.default
        }

    @property
    def readings(self) -> Readings:
        return Readings(self.min_readings, self.on_readings, self.off_readings)


def _scales(key: str, value: Any) -> tuple[Scale, ...]:
    """`value` as a file gives it, checked."""
    expected = (
        f"{key} is {value!r}; expected 1 to {MAX_SCALES} pairs [ratio, threshold] of a ratio above 1 and up to "
        f"{MAX_RATIO:g}, and a threshold above 0"
    )
    if not isinstance(value, list | tuple) or not 1 <= len(value) <= MAX_SCALES:
        raise ValueError(expected)
    for pair in value:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(map(_is_number, pair)):
            raise ValueError(expected)
        if not (1 < pair[0] <= MAX_RATIO and 0 < pair[1] < math.inf):
            raise ValueError(expected)
    return tuple(Scale(float(ratio), float(threshold)) for ratio, threshold in value)


def _roles(key: str, value: Any) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(role in ROLES for role in value):
        raise ValueError(f"{key} is {value!r}; expected some of {', '.join(ROLES)}")
    return tuple(value)


def _milder(severity: RuleSeverity, most: Severity) -> RuleSeverity:
    if severity == "off":
        return severity
    return min(severity, most, key=SEVERITIES.index)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _check_count(key: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_READINGS:
        raise ValueError(f"{key} is {value!r}; expected a whole number from 1 to {MAX_READINGS}")


DEFAULT_CONFIG = DetectConfig()
