"""Copies of watched tensors into the arena: host (memory to memory), scaled (one byte an element and a scale per row),
memory (what the arena is made of), quiet (how torch is used on the trainer's thread). They touch torch inside functions
alone."""

from rankd_client.copies.host import copy
from rankd_client.copies.memory import allocate
from rankd_client.copies.quiet import capturing, plain_torch, quiet_torch

__all__ = ["allocate", "capturing", "copy", "plain_torch", "quiet_torch"]
