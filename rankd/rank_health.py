"""The in-process API: rank health of weights inside a training loop, without a daemon."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from rankd.detectors.ema import RankTrendDetector
from rankd.metrics import DEFAULT_EPS, compute_health, named_matrices
from rankd.spectrum import measure_spectrum

DEFAULT_CRITICAL_LAYERS = ("lm_head", "c_proj")


def compute_stable_rank(weight: torch.Tensor) -> float:
    """‖W‖_F²/‖W‖₂² of `weight` as a (size(0), -1) matrix of any real dtype.

    `float(weight.numel())` for a zero matrix and for fewer than two dimensions, NaN for non-finite weights.
    """
    if weight.ndim < 2:
        return float(weight.numel())
    return compute_health(measure_spectrum(weight))["stable_rank"]


def compute_effective_rank(weight: torch.Tensor, eps: float = DEFAULT_EPS) -> float:
    """exp of the entropy of σ/Σσ (Roy & Vetterli 2007) of `weight` as a (size(0), -1) matrix, in [1, min(m, n)].

    1.0 where Σσ < eps and for fewer than two dimensions, NaN for non-finite weights.
    """
    if weight.ndim < 2:
        return 1.0
    return compute_health(measure_spectrum(weight), eps)["effective_rank"]


class RankHealthMonitor:
    """Warns of layers whose stable rank falls, by one RankTrendDetector per layer.

    `log_interval` is the number of checks of a layer's warm-up, `warn_threshold` the fall below its baseline that warns
    (0.3: 30 %). Layers whose name contains a pattern of `critical_layers` (default `lm_head`, `c_proj`) have the
    threshold `warn_threshold * critical_threshold_multiplier`.
    """

    def __init__(
        self,
        log_interval: int = 100,
        warn_threshold: float = 0.3,
        critical_layers: Sequence[str] | None = None,
        critical_threshold_multiplier: float = 0.5,
    ) -> None:
        if log_interval < 1:
            raise ValueError(f"log_interval is {log_interval}; expected a whole number of 1 or more")
        if not 0 <= warn_threshold <= 1:
            raise ValueError(f"warn_threshold is {warn_threshold}; expected a share from 0 to 1")
        if not 0 <= critical_threshold_multiplier * warn_threshold <= 1:
            raise ValueError(
                f"critical_threshold_multiplier is {critical_threshold_multiplier}; expected a factor that leaves "
                f"the threshold of critical layers from 0 to 1 (warn_threshold is {warn_threshold})"
            )
        if isinstance(critical_layers, str):
            raise ValueError(f"critical_layers is the text {critical_layers!r}; expected a list of patterns")
        self.log_interval = log_interval
        self.warn_threshold = warn_threshold
        self.critical_layers = list(DEFAULT_CRITICAL_LAYERS if critical_layers is None else critical_layers)
        self.critical_threshold_multiplier = critical_threshold_multiplier
        self.detectors: dict[str, RankTrendDetector] = {}

    def compute_layer_ranks(self, model: torch.nn.Module) -> dict[str, dict[str, float]]:
        """`stable_rank`, `effective_rank` and `spectral_norm` of every parameter of two or more dimensions by its name;
        the singular values of a layer are computed once. All-zero and non-finite layers as in the functions above."""
        return {name: compute_health(measure_spectrum(weight)) for name, weight in named_matrices(model)}

    def check_warnings(self, ranks: Mapping[str, Mapping[str, float]]) -> list[str]:
        """One check of `compute_layer_ranks`' answer: a line starting `WARN` for each layer below its threshold."""
        warnings = []
        for name, values in ranks.items():
            if name not in self.detectors:
                threshold = self.get_threshold_for_layer(name)
                self.detectors[name] = RankTrendDetector(threshold_pct=threshold, window=self.log_interval)
            message = self.detectors[name].update(values["stable_rank"])
            if message is not None:
                warnings.append(f"WARN {name}: stable rank {message.removeprefix('WARN ')}")
        return warnings

    def get_threshold_for_layer(self, name: str) -> float:
        """The fall below its baseline that warns for this layer, as a share."""
        if any(pattern in name for pattern in self.critical_layers):
            return self.warn_threshold * self.critical_threshold_multiplier
        return self.warn_threshold
