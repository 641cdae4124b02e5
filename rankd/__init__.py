"""rankd: a background monitor of weight-matrix health.

The names below are usable in any process, with no daemon. They are imported on first use: `import rankd` does not
import torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rankd.detectors.ema import RankTrendDetector
    from rankd.metrics import compute_rank_stats
    from rankd.rank_health import RankHealthMonitor, compute_effective_rank, compute_stable_rank

__all__ = [
    "RankHealthMonitor",
    "RankTrendDetector",
    "compute_effective_rank",
    "compute_rank_stats",
    "compute_stable_rank",
]

_HOMES = {
    "RankHealthMonitor": "rankd.rank_health",
    "RankTrendDetector": "rankd.detectors.ema",
    "compute_effective_rank": "rankd.rank_health",
    "compute_rank_stats": "rankd.metrics",
    "compute_stable_rank": "rankd.rank_health",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'rankd' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
