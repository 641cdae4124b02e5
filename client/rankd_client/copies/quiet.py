"""How torch is used on somebody else's thread."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext


@contextmanager
def quiet_torch() -> Iterator[None]:
    """`plain_torch` on `one_thread`."""
    with one_thread(), plain_torch():
        yield


@contextmanager
def one_thread() -> Iterator[None]:
    """One intra-op thread, for copies in host memory: two on busy cores were up to 15 times slower than one. Restored.
    What goes on a GPU does without: on 16 cores it took 0.1 ms."""
    import torch

    num_threads = torch.get_num_threads()
    if num_threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if num_threads != 1:
            torch.set_num_threads(num_threads)


@contextmanager
def plain_torch() -> Iterator[None]:
    """No autograd, and no mode that the caller is in, such as FakeTensorMode, in which nothing would be copied; all
    restored."""
    import torch

    with _no_modes(), torch.inference_mode(False), torch.no_grad():
        yield


def has_modes() -> bool:
    """Whether the caller is in a mode that would have torch do something else than it is told."""
    import torch

    return bool(torch._C._len_torch_dispatch_stack())


def _no_modes() -> AbstractContextManager[object]:
    if not has_modes():
        return nullcontext()
    from torch.utils._python_dispatch import _disable_current_modes

    return _disable_current_modes()


def capturing() -> bool:
    """Whether a CUDA graph is being captured on this thread: a copy would become part of it, or break it."""
    import torch

    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())  # type: ignore[no-untyped-call]
