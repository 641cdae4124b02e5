"""Golub–Kahan bidiagonalisation of a batch of matrices, from many start vectors each at once.

One pass over a matrix serves all its start vectors, which is what makes it cheap: both the bounds of σ₁ and the traces
of the estimate tier are read off the recurrences' coefficients. There is no reorthogonalisation: what is read off are
extreme Ritz values and Gauss quadratures, which rounding spoils far less than the vectors (Golub & Meurant 2010,
"Matrices, Moments and Quadrature", ch. 4 and 7).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch

TINY = 1e-30
"""Below every norm of a matrix whose largest magnitude is about 1: what divides by it stays 0."""


class Operator:
    """A batch (B, m, n) of matrices as operators between their short side, of r = min(m, n) elements, and their long
    side: `adjoint` takes short vectors (B, k, r) to long ones, `forward` takes them back.

    Vectors are rows: with few of them as columns, MKL's products were up to ten times slower.
    """

    def __init__(self, matrices: torch.Tensor) -> None:
        """float32 or float64, or on a GPU bfloat16."""
        self._short = matrices if matrices.shape[1] <= matrices.shape[2] else matrices.mT
        self._rest: torch.Tensor | None = None
        # Products of bfloat16 that are summed in float32 cost a third of float32's. Vectors go as two halves of 8 bits
        # each, and so do matrices of float32: 16 bits of both, where the products of two lower halves are left out.
        self._halves = matrices.is_cuda and matrices.dtype != torch.float64
        if self._halves and matrices.dtype != torch.bfloat16:
            upper = self._short.bfloat16()
            self._rest = (self._short - upper).bfloat16()
            self._short = upper
        self.dtype = torch.float32 if self._halves else matrices.dtype
        self.device = matrices.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(B, r, long side)"""
        num, short, long = self._short.shape
        return num, short, long

    @property
    def epsilon(self) -> float:
        """Of one product, relative to the matrix's norm."""
        return 2.0**-16 if self._halves else float(torch.finfo(self.dtype).eps)

    @property
    def slack(self) -> float:
        """By how much rounding may have changed a norm, relatively: of random signs it is a few units, of equal
        elements it grows with their number (up to half as much was seen)."""
        _, short, long = self._short.shape
        return 32 * self.epsilon + (short + long) / 4 * float(torch.finfo(self.dtype).eps)

    def adjoint(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._product(vectors, self._short, self._rest)

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        return self._product(vectors, self._short.mT, None if self._rest is None else self._rest.mT)

    def _product(self, vectors: torch.Tensor, matrices: torch.Tensor, rest: torch.Tensor | None) -> torch.Tensor:
        if not self._halves:
            return torch.bmm(vectors, matrices)
        upper = vectors.bfloat16()
        lower = (vectors - upper).bfloat16()
        both = torch.bmm(torch.cat([upper, lower], dim=1), matrices, out_dtype=torch.float32)
        half = vectors.shape[1]
        product = both[:, :half] + both[:, half:]
        return product if rest is None else product.add_(torch.bmm(upper, rest, out_dtype=torch.float32))


class Recurrence:
    """B·k recurrences side by side, of any number of steps: `extend` goes on where it was.

    After q steps `coefficients` are alphas and betas, (B, k, q) float64: with AAᵀ on the short side, the bidiagonal
    matrix with diagonal α₁…α_q and superdiagonal β₁…β_{q-1} has the Lanczos matrix of the start vector as its Gram
    matrix; β_q is the residual.
    """

    def __init__(self, operator: Operator, starts: torch.Tensor, keep: bool = False) -> None:
        """`starts`: (B, k, r), rows of norm 1 or 0. `keep` the vectors of each step."""
        self._operator = operator
        self._keep = keep
        self._right = starts
        self.rights = [starts] if keep else list[torch.Tensor]()
        """(B, k, r) for each step, and the next: what Ritz vectors are made of."""
        self._alphas, self._betas = list[torch.Tensor](), list[torch.Tensor]()
        self._open(operator.adjoint(starts))

    @property
    def num_steps(self) -> int:
        return len(self._alphas)

    def extend(self, num_steps: int) -> None:
        """Until there are `num_steps` of them."""
        while len(self._alphas) < num_steps:
            self._open(self._operator.adjoint(self._right).addcmul_(self._left, self._betas[-1], value=-1))

    def coefficients(self) -> tuple[torch.Tensor, torch.Tensor]:
        """(alphas, betas)"""
        alphas, betas = (torch.cat(parts, dim=2).double() for parts in (self._alphas, self._betas))
        return alphas, betas

    def _open(self, left: torch.Tensor) -> None:
        """One step: α of the long side's next vector, then β and the next vector of the short side."""
        alpha = _norm(left)
        self._left = left.div_(alpha.clamp(min=TINY))
        right = self._operator.forward(self._left).addcmul_(self._right, alpha, value=-1)
        beta = _norm(right)
        self._right = right.div_(beta.clamp(min=TINY))
        if self._keep:
            self.rights.append(self._right)
        self._alphas.append(alpha)
        self._betas.append(beta)


def _norm(vectors: torch.Tensor) -> torch.Tensor:
    norms: torch.Tensor = torch.linalg.vector_norm(vectors, dim=2, keepdim=True)
    return norms


def draw(keys: Sequence[str], num: int, size: int, operator: Operator) -> torch.Tensor:
    """(B, num, size) standard normal numbers: the same for the same key, on the same kind of device."""
    probes = torch.empty(len(keys), num, size, dtype=operator.dtype, device=operator.device)
    generator = torch.Generator(operator.device)
    for key, block in zip(keys, probes, strict=True):
        generator.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little"))
        block.normal_(generator=generator)
    return probes


def unit(rows: torch.Tensor) -> torch.Tensor:
    """(B, k, r) rows of norm 1; rows of 0 stay."""
    return rows / _norm(rows).clamp(min=TINY)
