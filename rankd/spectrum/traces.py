"""Traces of functions of the singular values, read off Golub–Kahan coefficients.

Everything goes through one curve, G(x) = tr M(M+x)⁻¹ = Σ σ²/(σ²+x) with M = AAᵀ (in ridge regression: the effective
degrees of freedom). A start vector's g(x) follows from its coefficients by a continued fraction without a single
cancellation; and what is wanted is linear in it, with x = eʸ:

    σ        = 1/π  ∫ e^{y/2} g dy                              (nuclear norm)
    σ log σ² = 1/π  ∫ e^{y/2} y g dy                            (entropy of σ)
    σ² log σ² =     ∫ eʸ (σ²/(1+eʸ) − g) dy                     (entropy of σ²)

Integrands fall off exponentially on both sides, so that the trapezoidal rule converges exponentially too. The q-step
Gauss rule has g from above and the Gauss–Radau rule with a node at 0 has it from below (λ/(λ+x) has derivatives of one
sign), which bounds the error of the quadrature by itself (Golub & Meurant 2010, ch. 6)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

_SPACING = 0.75
"""In y: the trapezoidal rule is off by e^(-2π²/0.75) = 4e-12, for the integrands' poles lie at distance π."""
_REACH = 36.0
"""In y, either side of log σ₁²: beyond, e^{-18} of a singular value is left."""


@dataclass(frozen=True, slots=True)
class Traces:
    """For each start vector v, float64: vᵀf(M)v with f = λ and λ² (B, k), exactly; `upper` and `lower` (B, k, P):
    bounds of its g at `x` = eʸ (P)."""

    first: torch.Tensor
    second: torch.Tensor
    upper: torch.Tensor
    lower: torch.Tensor
    y: torch.Tensor

    @property
    def middle(self) -> torch.Tensor:
        """(B, k, P): where g lies as a rule. The Gauss rule was off by half as much as Gauss–Radau on the spectra of
        random, spiked, trained and power-law matrices alike, all of which reach down to 0."""
        return torch.lerp(self.lower, self.upper, 2 / 3)

    @property
    def root(self) -> torch.Tensor:
        """(P,): what a curve is multiplied with for tr √M."""
        return torch.exp(self.y / 2) * (_SPACING / math.pi)

    @property
    def root_log(self) -> torch.Tensor:
        """(P,): for tr √M log M."""
        return self.root * self.y

    @property
    def linear(self) -> torch.Tensor:
        """(P,): for −tr M log M, to which tr M Σ `linear`/(1+x) is to be added."""
        return torch.exp(self.y) * _SPACING


def read_traces(alphas: torch.Tensor, betas: torch.Tensor) -> Traces:
    """Of coefficients (B, k, q) of matrices whose norm is about 1."""
    num = math.ceil(2 * _REACH / _SPACING) + 1
    y = _SPACING * (torch.arange(num, dtype=torch.float64, device=alphas.device) - num // 2)
    a, b = alphas**2, betas**2
    upper, lower = _curves(a, b, y.exp())
    return Traces(a[:, :, 0], a[:, :, 0] * (a[:, :, 0] + b[:, :, 0]), upper, lower, y)


def _curves(a: torch.Tensor, b: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(2, B, k, P), upper and lower: e₁ᵀ T (T+x)⁻¹ e₁ of the Lanczos matrix T with squared coefficients `a` and `b`."""
    last, residual = a[:, :, -1:], b[:, :, -1:]
    y = torch.stack([last.expand(*last.shape[:2], len(x)), last * x / (residual + x)])
    for step in range(a.shape[2] - 2, -1, -1):
        y = y + x
        y = a[:, :, step : step + 1] * y / (b[:, :, step : step + 1] + y)
    return y / (x + y)
