"""What the arena is made of: a sealed memfd where there is one, and else what there was before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rankd_client import memfd
from rankd_client.arena import Arena
from rankd_client.copies import allocate
from rankd_client.copies.memory import bytes_of


def test_a_block_is_a_sealed_memfd_all_of_it_allocated() -> None:
    memory = allocate(100_000)
    assert memfd.is_sealed(memory.fd)
    info = os.fstat(memory.fd)
    assert info.st_size == 100_000
    assert info.st_blocks * 512 >= 100_000


def test_the_view_and_the_tensor_are_the_same_bytes() -> None:
    arena = Arena(1 << 16, allocate)
    arena.grow(1 << 16)
    region = arena.reserve(32)
    assert region is not None
    region.view[:] = bytes(range(32))
    assert bytes_of(region).tolist() == list(range(32))
    bytes_of(region).fill_(7)
    assert bytes(region.view) == b"\7" * 32


@pytest.mark.parametrize("missing", ["memfd_create", "seals"])
def test_without_memfds_or_seals_it_is_memory_of_ones_own(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On systems that have none; what they answer is all that is put in their place."""
    if missing == "memfd_create":
        monkeypatch.delattr(os, "memfd_create")
    else:
        monkeypatch.setattr(memfd, "_ADD_SEALS", 4097)  # EINVAL, as from a kernel that does not know it
    before = len(list(Path("/proc/self/fd").iterdir()))
    memory = allocate(4096)
    memory.view[:] = b"x" * 4096
    assert memory.fd == -1
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_interpreter_ends_in_silence_with_the_memory_in_use() -> None:
    code = (
        "import atexit; from rankd_client.copies import allocate; m = allocate(9999); atexit.register(m.view.tobytes)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_memory_for_a_gpu_is_pinned_and_no_larger_than_asked() -> None:
    memory = allocate((1 << 20) + 4096, pinned=True)
    assert memory.owner.is_pinned()
    assert memfd.is_sealed(memory.fd)
    source = torch.arange(1 << 20, dtype=torch.uint8, device="cuda")
    memory.owner[4096:].copy_(source, non_blocking=True)
    torch.cuda.synchronize()
    assert torch.equal(memory.owner[4096:], source.cpu())
    del memory
    assert allocate(1 << 20, pinned=True).owner.is_pinned()
