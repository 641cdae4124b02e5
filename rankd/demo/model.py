"""The demo's model: a character-level transformer whose linear layers compute with quantised weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


def fake_quantize(weight: Tensor, bits: int) -> Tensor:
    """`weight` (rows, cols) rounded to 2**bits - 1 evenly spaced levels a row, symmetric about zero.

    The usual integer grid of quantisation-aware training (Jacob et al. 2018), one scale for each output channel. The
    result stays floating point, in the dtype of `weight`. Rounding has no useful gradient, so the backward pass takes
    it for the identity: the straight-through estimator (Bengio et al. 2013). Raises ValueError for fewer than 2 bits.
    """
    if bits < 2:
        raise ValueError(f"bits is {bits}, expected at least 2: one bit leaves a symmetric grid only its zero")
    largest_level = 2 ** (bits - 1) - 1
    scale = weight.detach().abs().amax(dim=1, keepdim=True).clamp_min(1e-12) / largest_level
    rounded = (weight.detach() / scale).round() * scale
    quantized: Tensor = weight + (rounded - weight.detach())
    return quantized


class QuantizedLinear(nn.Linear):
    """A linear layer that computes with its weight as `bits`-bit integers would hold it.

    `weight` itself stays float32: it is what the optimizer moves, what is pushed and what is watched.
    """

    def __init__(self, in_features: int, out_features: int, bits: int) -> None:
        super().__init__(in_features, out_features, bias=False)
        self.bits = bits

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, fake_quantize(self.weight, self.bits))


class Block(nn.Module):
    """Causal self-attention, then a two-layer perceptron, each added to the residual stream (pre-norm)."""

    def __init__(self, width: int, num_heads: int, bits: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.attention_norm = nn.LayerNorm(width)
        self.query = QuantizedLinear(width, width, bits)
        self.key = QuantizedLinear(width, width, bits)
        self.value = QuantizedLinear(width, width, bits)
        self.project = QuantizedLinear(width, width, bits)
        self.mlp_norm = nn.LayerNorm(width)
        self.up = QuantizedLinear(width, 4 * width, bits)
        self.down = QuantizedLinear(4 * width, width, bits)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.attention_norm(x))
        x = x + self.down(functional.relu(self.up(self.mlp_norm(x))))
        return x

    def attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            linear(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (batch, heads, time, width / heads)
            for linear in (self.query, self.key, self.value)
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.project(mixed.transpose(1, 2).flatten(-2))
        return projected


def sinusoids(length: int, width: int) -> Tensor:
    """Fixed position vectors (length, width), sines and cosines of falling frequency (Vaswani et al. 2017)."""
    frequencies = 10_000.0 ** (-torch.arange(0, width, 2) / width)
    angles = torch.outer(torch.arange(length), frequencies)
    return torch.cat((angles.sin(), angles.cos()), dim=1)


class Transformer(nn.Module):
    """Characters (batch, time) int64 to logits (batch, time, vocabulary) of the next character."""

    positions: Tensor

    def __init__(
        self, vocabulary: int, context: int, width: int = 64, num_blocks: int = 2, num_heads: int = 4, bits: int = 8
    ) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.register_buffer("positions", sinusoids(context, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, num_heads, bits) for _ in range(num_blocks))
        self.norm = nn.LayerNorm(width)
        self.head = QuantizedLinear(width, vocabulary, bits)

    def forward(self, characters: Tensor) -> Tensor:
        x = self.characters(characters) + self.positions[: characters.shape[1]]
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits
