"""What measuring may be told: the table [measure]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from rankd.records import TIERS, Tier

AskedTier = Tier | Literal["auto"]
ASKED_TIERS = ("auto", *TIERS)

Method = Literal["auto", "svdvals"]
METHODS = ("auto", "svdvals")


@dataclass(frozen=True, slots=True)
class MeasureConfig:
    """The settings of measuring. Raises ValueError naming the key, its value and what was expected."""

    tier: AskedTier = "auto"
    """What every snapshot gets, or "auto": the dearest that `max_share` has room for, layer by layer."""

    max_share: float = 0.5
    """Of the wall time of all measuring slots, wanted at most. Not all of it: where the slots are never idle, any
    jitter makes a queue that lasts, and a run that joins finds no place."""

    max_every: int = 32
    """However little time there is, what is measured of a layer gets an effective rank at every so many pushes, the
    others norms. Sooner where a layer has few pushes yet: readings so far apart that the default rule would be blind
    are never planned (`rankd.plan.layer.SPARSEST`), so that 32 is reached at the 854th push."""

    tolerance: float = 0.05
    """Widest bar of an estimate, as a share of its value; a wider one is measured exactly. The default rule fires at a
    change of 6 %."""

    method: Method = "auto"
    """Of the exact tier: the fastest that is accurate for device and shape, or torch.linalg.svdvals, the reference."""

    split: Mapping[str, str] = field(default_factory=dict)
    """Glob of layer names → how such a weight is cut into parts, before the rules that are known already."""

    metrics: tuple[str, ...] = ()
    """Further metrics, by their names in rankd.metrics.EXTRA_METRICS. They need the whole spectrum: what would be
    estimated is measured exactly for them."""

    def __post_init__(self) -> None:
        for name, known in (("tier", ASKED_TIERS), ("method", METHODS)):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}")
        for name, is_within, expected in (
            ("max_share", 0 < self.max_share <= 1, "a share above 0 and up to 1"),
            ("max_every", self.max_every >= 1, "a number of pushes, at least 1"),
            ("tolerance", 0 < self.tolerance <= 1, "a share above 0 and up to 1"),
        ):
            if not is_within:
                raise ValueError(f"{name} is {getattr(self, name)}; expected {expected}")
        if isinstance(self.metrics, str) or not all(isinstance(name, str) for name in self.metrics):
            raise ValueError(f"metrics is {self.metrics!r}; expected a list of names")
        object.__setattr__(self, "metrics", tuple(self.metrics))
        for glob, rule in self.split.items():
            if not isinstance(rule, str) or not glob or not rule:
                raise ValueError(f"split is {glob!r} = {rule!r}; expected a glob of layer names and a rule, both texts")
