"""A small model with what does not go evenly into a few processes: rows, tied weights, a convolution."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """10 and 3 rows do not go evenly into 4 and 2 processes; of 3, one of 4 processes has none."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.up = nn.Linear(width, 10)
        self.down = nn.Linear(10, width, bias=False)
        self.thin = nn.Linear(width, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = x + self.down(torch.relu(self.up(x)))
        return hidden * self.thin(x).mean()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 12)
        self.layers = nn.ModuleList([Block(), Block()])
        self.conv = nn.Conv1d(12, 8, 3, padding=1)
        self.head = nn.Linear(12, 10, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        bent: torch.Tensor = self.head(x).mean() + self.conv(x.transpose(1, 2)).mean()
        return bent
