"""A GPT-2 that trains for real, in bfloat16 autocast with fused AdamW, on tokens drawn on its device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class Size:
    vocabulary: int
    context: int
    width: int
    num_blocks: int
    num_heads: int
    batch: int

    @property
    def tokens(self) -> int:
        """Of one step."""
        return self.batch * self.context


GPT2_SMALL = Size(vocabulary=50304, context=1024, width=768, num_blocks=12, num_heads=12, batch=16)
"""124 M parameters. The vocabulary is rounded up to a multiple of 64, as is usual: the product is faster so."""

TINY = Size(vocabulary=512, context=32, width=64, num_blocks=2, num_heads=2, batch=4)
"""To see that every way runs."""


class Block(nn.Module):
    """Causal self-attention and a perceptron, each behind its norm and added to the residual stream."""

    def __init__(self, size: Size, dropout: float) -> None:
        super().__init__()
        self.num_heads, self.dropout = size.num_heads, dropout
        self.ln_1 = nn.LayerNorm(size.width)
        self.c_attn = nn.Linear(size.width, 3 * size.width)
        self.c_proj = nn.Linear(size.width, size.width)
        self.ln_2 = nn.LayerNorm(size.width)
        self.mlp_fc = nn.Linear(size.width, 4 * size.width)
        self.mlp_proj = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self._dropped(self._attend(self.ln_1(x)))
        return x + self._dropped(self.mlp_proj(functional.gelu(self.mlp_fc(self.ln_2(x)), approximate="tanh")))

    def _attend(self, x: Tensor) -> Tensor:
        query, key, value = (
            part.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for part in self.c_attn(x).chunk(3, dim=-1)
        )  # (batch, heads, time, width / heads)
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        projected: Tensor = self.c_proj(mixed.transpose(1, 2).flatten(-2))
        return projected

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class GPT2(nn.Module):
    """Tokens (batch, time) int64 to logits (batch, time, vocabulary); the embedding serves as the last layer too."""

    def __init__(self, size: Size, dropout: float = 0.0) -> None:
        super().__init__()
        self.wte = nn.Embedding(size.vocabulary, size.width)
        self.wpe = nn.Embedding(size.context, size.width)
        self.h = nn.ModuleList(Block(size, dropout) for _ in range(size.num_blocks))
        self.ln_f = nn.LayerNorm(size.width)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.wte(tokens) + self.wpe.weight[: tokens.shape[1]]
        for block in self.h:
            x = block(x)
        return functional.linear(self.ln_f(x), self.wte.weight)


def nothing() -> None:
    pass


class Training:
    """A loop that can be taken step by step. Its tokens come from a generator of its own, with a fixed seed."""

    def __init__(self, size: Size, device: str, seed: int = 0, dropout: float = 0.0) -> None:
        torch.manual_seed(seed)
        self.size, self.device = size, torch.device(device)
        self.model = GPT2(size, dropout).to(self.device)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4, weight_decay=0.1, fused=True)
        self.num_steps = 0
        self._generator = torch.Generator(self.device).manual_seed(seed)

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self.model.parameters())

    def step(self, before_update: Callable[[], None] = nothing) -> Tensor:
        """One step; its loss, which nobody has waited for yet. `before_update` is called when the gradients are on
        their way."""
        tokens = torch.randint(
            self.size.vocabulary,
            (self.size.batch, self.size.context + 1),
            device=self.device,
            generator=self._generator,
        )
        with torch.autocast(self.device.type, torch.bfloat16):
            logits = self.model(tokens[:, :-1])
            loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        before_update()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.num_steps += 1
        return loss.detach()

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def matrices(self) -> list[Tensor]:
        """Its weight matrices, the embeddings left out: what is worth a spectrum at every look."""
        return [module.weight.detach() for module in self.model.modules() if isinstance(module, nn.Linear)]
