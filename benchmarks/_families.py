"""Weight matrices of known kinds of spectra, fresh ones for each seed.

A family is a function of (shape, generator) to a float32 matrix on the generator's device. Most are U diag(σ) Vᵀ with
U and V random orthogonal. What is random besides U and V (how many spikes, how strong, how low the noise) is drawn too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

Shape = tuple[int, int]
Family = Callable[[Shape, Generator], Tensor]

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def make(family: str, shape: Shape, dtype: str, seed: int, device: str = "cpu") -> Tensor:
    """The matrix of that seed. Seeds give other matrices on another kind of device."""
    generator = Generator(device).manual_seed(seed)
    return FAMILIES[family](shape, generator).to(DTYPES[dtype])


def _uniform(generator: Generator, low: float, high: float) -> float:
    return low + (high - low) * float(torch.rand((), generator=generator, device=generator.device))


def _count(generator: Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator, device=generator.device))


def _normal(rows: int, cols: int, generator: Generator) -> Tensor:
    return torch.randn(rows, cols, generator=generator, device=generator.device)


def _orthogonal(rows: int, cols: int, generator: Generator) -> Tensor:
    """rows × cols with orthonormal columns, Haar distributed."""
    q, r = torch.linalg.qr(_normal(rows, cols, generator))
    signed: Tensor = q * r.diagonal().sign()
    return signed


def _compose(shape: Shape, values: Tensor, generator: Generator) -> Tensor:
    """U diag(values) Vᵀ; fewer values than min(shape) leave the others zero, up to rounding."""
    left = _orthogonal(shape[0], len(values), generator)
    return (left * values) @ _orthogonal(shape[1], len(values), generator).T


def _steps(shape: Shape, generator: Generator) -> Tensor:
    """1 … min(shape)"""
    return torch.arange(1, min(shape) + 1, dtype=torch.float32, device=generator.device)


def _gaussian(shape: Shape, generator: Generator) -> Tensor:
    return 0.02 * _normal(*shape, generator)


def _spikes(shape: Shape, count: int, low: float, generator: Generator) -> Tensor:
    """`count` directions whose strengths fall from 10 × low to low, in units of the largest value of `_gaussian`."""
    edge = 0.02 * (math.sqrt(shape[0]) + math.sqrt(shape[1]))
    strengths = edge * low * torch.logspace(1, 0, count, device=generator.device)
    return _compose(shape, strengths, generator)


def _spiked(shape: Shape, generator: Generator) -> Tensor:
    return _gaussian(shape, generator) + _spikes(shape, _count(generator, 1, 8), _uniform(generator, 1, 3), generator)


def _trained_like(shape: Shape, generator: Generator) -> Tensor:
    """A bulk of random rows of unequal scale and a power-law tail that reaches into it."""
    scales = (0.3 * _normal(shape[0], 1, generator)).exp()
    count = max(min(shape) // 16, 1)
    tail = 0.02 * (math.sqrt(shape[0]) + math.sqrt(shape[1])) * _uniform(generator, 3, 10)
    return scales * _gaussian(shape, generator) + _compose(
        shape, tail * torch.arange(1, count + 1, device=generator.device) ** -0.7, generator
    )


def _power_law(exponent: float) -> Family:
    return lambda shape, generator: _compose(shape, _steps(shape, generator) ** -exponent, generator)


def _low_rank(shape: Shape, generator: Generator) -> Tensor:
    """Exactly of 1 … 32 dimensions in any dtype: a product of small whole numbers, times a power of two."""
    inner = _count(generator, 1, min(32, *shape))
    sides = (torch.randint(-2, 3, (side, inner), generator=generator, device=generator.device) for side in shape)
    left, right = (side.float() for side in sides)
    return left @ right.T / 64


def _low_rank_noise(shape: Shape, generator: Generator) -> Tensor:
    inner = _count(generator, 4, 32)
    noise = 10 ** _uniform(generator, -5, -2)
    values = _uniform(generator, 1, 2) * torch.linspace(1, 0.3, inner, device=generator.device)
    return _compose(shape, values, generator) + noise * _normal(*shape, generator) / math.sqrt(max(shape))


def _flat_spike(shape: Shape, generator: Generator) -> Tensor:
    values = torch.ones(min(shape), device=generator.device)
    values[0] = 10 ** _uniform(generator, 0.3, 1.7)
    return _compose(shape, values, generator)


def _graded(shape: Shape, generator: Generator) -> Tensor:
    return _compose(shape, torch.logspace(0, -12, min(shape), device=generator.device), generator)


def _two_clusters(shape: Shape, generator: Generator) -> Tensor:
    values = torch.ones(min(shape), device=generator.device)
    values[int(_uniform(generator, 0.05, 0.5) * len(values)) :] = 10 ** _uniform(generator, -3, -0.5)
    return _compose(shape, values, generator)


FAMILIES: Mapping[str, Family] = {
    "gaussian": _gaussian,
    "spiked": _spiked,
    "power_half": _power_law(0.5),
    "power_1": _power_law(1.0),
    "power_2": _power_law(2.0),
    "low_rank": _low_rank,
    "low_rank_noise": _low_rank_noise,
    "flat_spike": _flat_spike,
    "graded": _graded,
    "two_clusters": _two_clusters,
    "trained_like": _trained_like,
}
