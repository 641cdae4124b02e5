"""Spectrum → named numbers. Extension point: a further metric is a function of a Spectrum and a line in METRICS, or in
EXTRA_METRICS where it is only measured if it was asked for."""

from __future__ import annotations

import logging
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from rankd.records import Spectrum
from rankd.spectrum import measure_spectrum
from rankd_client.naming import clashes, clean_names

log = logging.getLogger("rankd.metrics")

DEFAULT_EPS = 1e-10
"""In-process functions only: the sum of singular values below which a matrix counts as zero."""


def stable_rank(spectrum: Spectrum) -> float:
    """‖W‖_F²/σ₁², in [1, min(rows, cols)] (Rudelson & Vershynin 2007, "Sampling from large matrices")."""
    return float(np.sum(spectrum.singular_values**2) / spectrum.singular_values[0] ** 2)


def effective_rank(spectrum: Spectrum) -> float:
    """exp of the entropy of σ/Σσ, in [1, min(rows, cols)] (Roy & Vetterli 2007, "The effective rank")."""
    return _exp_entropy(spectrum.singular_values)


def effective_rank_energy(spectrum: Spectrum) -> float:
    """exp of the entropy of σ²/Σσ², in [1, min(rows, cols)]: `effective_rank` of WᵀW."""
    return _exp_entropy(spectrum.singular_values**2)


def spectral_norm(spectrum: Spectrum) -> float:
    """σ₁ = ‖W‖₂, in the weights' own unit."""
    return spectrum.scale * float(spectrum.singular_values[0])


def frobenius_norm(spectrum: Spectrum) -> float:
    """√Σσ² = ‖W‖_F, in the weights' own unit."""
    return spectrum.scale * math.sqrt(float(np.sum(spectrum.singular_values**2)))


def participation_ratio(spectrum: Spectrum) -> float:
    """(Σσ²)²/Σσ⁴, in [1, min(rows, cols)] (Bell & Dean 1970; of the eigenvalues of WᵀW)."""
    energy = spectrum.singular_values**2
    return float(np.sum(energy) ** 2 / np.sum(energy**2))


def nuclear_norm(spectrum: Spectrum) -> float:
    """Σσ, in the weights' own unit."""
    return spectrum.scale * float(np.sum(spectrum.singular_values))


def num_above_mp_edge(spectrum: Spectrum) -> float:
    """How many singular values lie above s(√m+√n), s² the mean square of the elements: the Marchenko–Pastur edge, where
    the spectrum of a random matrix of this norm ends. What training made stands out above it."""
    values, (m, n) = spectrum.singular_values, (spectrum.rows, spectrum.cols)
    edge = math.sqrt(float(np.sum(values**2)) / (m * n)) * (math.sqrt(m) + math.sqrt(n))
    return float(np.count_nonzero(values > edge * (1 + _EDGE_WIDTH * min(m, n) ** (-2 / 3))))


def effective_rank_ratio(spectrum: Spectrum) -> float:
    """`effective_rank` over that of a random matrix of the same shape: a level that needs no size."""
    return effective_rank(spectrum) / random_effective_rank(spectrum.rows, spectrum.cols)


def stable_rank_ratio(spectrum: Spectrum) -> float:
    """`stable_rank` over that of a random matrix of the same shape."""
    return stable_rank(spectrum) / random_stable_rank(spectrum.rows, spectrum.cols)


def power_law_alpha(spectrum: Spectrum) -> float:
    """The exponent of the power law that fits the tail of the eigenvalues σ² best (Clauset et al. 2009), as the package
    `powerlaw` fits it: `pip install rankd[powerlaw]`. Training moves it towards 2 to 6 (Martin & Mahoney 2021)."""
    import powerlaw

    energy = spectrum.singular_values[spectrum.singular_values > 0] ** 2
    if len(energy) < _MIN_TAIL:
        return math.nan
    try:
        with _fitting, warnings.catch_warnings():  # which is of the whole process
            warnings.simplefilter("ignore")
            return float(powerlaw.Fit(energy, parameter_ranges={"alpha": _ALPHAS}, verbose=False).power_law.alpha)
    except ValueError as error:  # equal singular values, as an identity has them, follow no power law
        log.debug("no power law in %d × %d: %s", spectrum.rows, spectrum.cols, error)
        return math.nan


_EDGE_WIDTH = 2.0
"""Finite matrices have their largest singular value within a few r^(-2/3) of the edge (Tracy & Widom)."""

_fitting = threading.Lock()

_MIN_TAIL = 10
"""Singular values: fewer fit any exponent."""

_ALPHAS = [1.0, 20.0]
"""The package looks no further than 3 by itself."""

Metric = Callable[[Spectrum], float]

METRICS: dict[str, Metric] = {
    "stable_rank": stable_rank,
    "effective_rank": effective_rank,
    "effective_rank_energy": effective_rank_energy,
    "spectral_norm": spectral_norm,
    "frobenius_norm": frobenius_norm,
    "participation_ratio": participation_ratio,
    "nuclear_norm": nuclear_norm,
    "effective_rank_ratio": effective_rank_ratio,
    "stable_rank_ratio": stable_rank_ratio,
    "num_above_mp_edge": num_above_mp_edge,
}
"""Each is called only with a finite spectrum that is neither empty nor all zero; ratios do not depend on its scale."""

EXTRA_METRICS: dict[str, Metric] = {"power_law_alpha": power_law_alpha}
"""Metrics that cost more than the rest, or need a package of their own: measured where `[measure] metrics` has them."""

NEEDED_PACKAGES = {"power_law_alpha": "powerlaw"}
"""Of EXTRA_METRICS, by name; each is an extra of ours of the same name."""


def compute_metrics(spectrum: Spectrum, extra: Iterable[str] = ()) -> dict[str, float | None]:
    """Every metric of METRICS, and of EXTRA_METRICS those named: 0 for an all-zero or empty matrix, None for a
    non-finite one or where a result is not finite itself (a norm of float64 weights may overflow), since NaN and
    Infinity never stand in JSON."""
    metrics = METRICS | {name: EXTRA_METRICS[name] for name in extra}
    if not spectrum.finite:
        return dict.fromkeys(metrics)
    if spectrum.scale == 0:
        return dict.fromkeys(metrics, 0.0)
    values = {name: metric(spectrum) for name, metric in metrics.items()}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def random_stable_rank(rows: int, cols: int) -> float:
    """`stable_rank` of a large rows × cols matrix of independent elements: mn/(√m+√n)², and no less than 1."""
    return max(1.0, rows * cols / (math.sqrt(rows) + math.sqrt(cols)) ** 2)


@lru_cache(maxsize=4096)
def random_effective_rank(rows: int, cols: int) -> float:
    """`effective_rank` of a large rows × cols matrix of independent elements: r exp(−E[s log s]/E[s] + log E[s]) over
    the singular values s of the Marchenko–Pastur law, on [1 − √β, 1 + √β] with β = r over the long side."""
    short, long = min(rows, cols), max(rows, cols)
    if short <= 1:
        return float(short)
    beta = short / long
    # s² = 1 + β + 2√β cos t has density ∝ sin² t / s² dt.
    t = (np.arange(4096) + 0.5) * (math.pi / 4096)
    energy = 1 + beta + 2 * math.sqrt(beta) * np.cos(t)
    weight = np.sin(t) ** 2 / energy
    weight /= np.sum(weight)
    s = np.sqrt(energy)
    mean = float(np.sum(weight * s))
    return short * math.exp(math.log(mean) - float(np.sum(weight * s * np.log(s))) / mean)


def compute_health(spectrum: Spectrum, eps: float = DEFAULT_EPS) -> dict[str, float]:
    """`stable_rank`, `effective_rank` and `spectral_norm` with the fall-backs of the in-process functions: rows · cols,
    1.0 (where Σσ < eps) and 0.0 for an all-zero matrix; NaN for a non-finite one."""
    if not spectrum.finite:
        return dict.fromkeys(("stable_rank", "effective_rank", "spectral_norm"), math.nan)
    zero = spectrum.scale == 0
    negligible = zero or spectrum.scale * float(np.sum(spectrum.singular_values)) < eps
    return {
        "stable_rank": float(spectrum.rows * spectrum.cols) if zero else stable_rank(spectrum),
        "effective_rank": 1.0 if negligible else effective_rank(spectrum),
        "spectral_norm": 0.0 if zero else spectral_norm(spectrum),
    }


def named_matrices(model: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The real parameters of two or more dimensions, tied ones once, with names cleaned of wrappers. Raises ValueError
    naming both where two would be called alike."""
    parameters = dict(model.named_parameters())
    clean = clean_names(parameters)
    matrices = {name: value for name, value in parameters.items() if value.ndim >= 2 and not value.is_complex()}
    for reason in clashes({name: clean[name] for name in matrices}).values():
        raise ValueError(f"{reason}; expected different names without what wrappers add")
    return ((clean[name], parameter) for name, parameter in matrices.items())


def compute_rank_stats(model: torch.nn.Module) -> dict[str, float]:
    """`stable_rank/{name}` and `effective_rank/{name}` of every parameter of two or more dimensions, and the `/mean`
    and `/min` of each; all four are 0 for a model without matrices. A non-finite layer is NaN and stands outside mean
    and min (NaN only if no layer is left), so that one bad layer does not hide the others."""
    health = {name: compute_health(measure_spectrum(weight)) for name, weight in named_matrices(model)}
    stats: dict[str, float] = {}
    for metric in ("stable_rank", "effective_rank"):
        stats |= {f"{metric}/{name}": values[metric] for name, values in health.items()}
        stats |= _summary(metric, health)
    return stats


def _summary(metric: str, health: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    finite = [values[metric] for values in health.values() if math.isfinite(values[metric])]
    if not finite:
        nothing = math.nan if health else 0.0
        return {f"{metric}/mean": nothing, f"{metric}/min": nothing}
    return {f"{metric}/mean": math.fsum(finite) / len(finite), f"{metric}/min": min(finite)}


def _exp_entropy(weights: npt.NDArray[np.float64]) -> float:
    share = weights[weights > 0] / np.sum(weights)
    share = share[share > 0]  # a share may underflow, and 0 · log 0 is 0
    # Rounding may put the exponential a few ulp outside its mathematical bounds.
    return min(max(float(np.exp(-np.sum(share * np.log(share)))), 1.0), float(len(weights)))
