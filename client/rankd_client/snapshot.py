"""What of a model is watched, and the copy of it. It and `scaled` alone touch torch in the client, inside functions."""

from __future__ import annotations

import ctypes
import math
import mmap
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from rankd_client.arena import Memory, Region
from rankd_client.naming import clashes, clean_names
from rankd_client.scaled import copy_scaled
from rankd_client.text import escape
from rankd_client.wire import DTYPES, MAX_LAYER_NAME_BYTES, SCALE_BYTES, row_elements
from rankd_client.wire.limits import MAX_DIMENSIONS, MAX_ELEMENTS

if TYPE_CHECKING:
    import torch

SOURCE_DTYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Watched:
    """One tensor that is watched. `num_bytes` is its size on the wire, `dtype` its dtype there."""

    name: str
    tensor: torch.Tensor = field(repr=False)
    shape: tuple[int, ...]
    source_dtype: str
    dtype: str
    num_bytes: int
    is_cuda: bool
    priority: bool


@dataclass(frozen=True, slots=True)
class Selection:
    """Which names are wanted, as globs on cleaned names, and in which dtype they travel."""

    dtype: str = "bfloat16"
    include: tuple[str, ...] | None = None
    exclude: tuple[str, ...] = ()
    priority: tuple[str, ...] = ()

    def refuses(self, name: str) -> bool:
        included = self.include is None or _matches(name, self.include)
        return not included or _matches(name, self.exclude)


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def watch(model: Any, selection: Selection) -> tuple[list[Watched], dict[str, str]]:
    """The watched tensors of a module, or of a mapping of name -> tensor, in its order; and why the others are not.

    Watched is every parameter of two or more dimensions in a floating dtype. Tied weights count once, under their
    first name. Raises TypeError if `model` is neither.
    """
    tensors = list(_tensors(model))
    clean = clean_names(name for name, _ in tensors if isinstance(name, str))
    num_called = Counter(clean.values())
    watched: dict[str, Watched] = {}  # by the name that the model has
    skipped: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}  # identity of a tensor's memory -> what it was called first
    for raw_name, tensor in tensors:
        if not isinstance(raw_name, str):
            skipped[escape(raw_name)] = "name is not a string"
            continue
        name = clean[raw_name]
        found = _look(name, tensor, selection, seen)
        if isinstance(found, Watched):
            watched[raw_name] = found
        else:
            skipped[name if num_called[name] == 1 else raw_name] = found
    clashing = clashes({raw_name: item.name for raw_name, item in watched.items()})
    return [item for raw_name, item in watched.items() if raw_name not in clashing], skipped | clashing


def _look(name: str, tensor: Any, selection: Selection, seen: dict[tuple[Any, ...], str]) -> Watched | str:
    """The tensor as it is watched, or the reason why not. One that breaks as it is looked at, such as a nested one,
    costs the others nothing."""
    try:
        reason = _unfit_name(name) or ("excluded" if selection.refuses(name) else _unfit(tensor))
        if reason is not None:
            return reason
        item, identity = _watched(name, tensor, selection), _identity(tensor)
        if identity in seen:
            return f"tied to {seen[identity]}"
        seen[identity] = name
        return item
    except Exception as error:
        return f"cannot be read: {type(error).__name__}"


def _tensors(model: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(model, Mapping):
        return iter(model.items())
    if callable(getattr(model, "named_parameters", None)):
        return iter(model.named_parameters(remove_duplicate=False))
    raise TypeError(f"model={type(model).__name__}: expected a torch.nn.Module or a mapping of name -> tensor")


def _unfit_name(name: str) -> str | None:
    try:
        fits = 0 < len(name.encode()) <= MAX_LAYER_NAME_BYTES and "\0" not in name
    except UnicodeEncodeError:
        fits = False
    return None if fits else f"name is not 1 to {MAX_LAYER_NAME_BYTES} UTF-8 bytes without NUL"


def _unfit(tensor: Any) -> str | None:
    """Why `tensor` is not one to watch; None if it is."""
    import torch

    if not isinstance(tensor, torch.Tensor):
        return "not a tensor"
    if torch.nn.parameter.is_lazy(tensor):
        return "not initialised yet"
    if hasattr(tensor, "device_mesh") and hasattr(tensor, "placements"):
        return "sharded (DTensor)"
    if hasattr(tensor, "fake_mode"):
        return "fake"  # torch's stand-in without values, whose memory may not even be asked for
    dtype = str(tensor.dtype)
    return next(
        (
            reason
            for wrong, reason in (
                (tensor.dim() < 2, "fewer than 2 dimensions"),
                (dtype.removeprefix("torch.") not in SOURCE_DTYPES, f"dtype {dtype}"),
                (tensor.layout is not torch.strided, "sparse"),
                (tensor.is_meta, "meta"),
                (tensor.numel() == 0, "empty"),
                (tensor.dim() > MAX_DIMENSIONS, f"more than {MAX_DIMENSIONS} dimensions"),
                (tensor.numel() >= MAX_ELEMENTS, "too many elements"),
            )
            if wrong
        ),
        None,
    )


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two names of one matrix, such as a `state_dict()` has them for tied weights."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype


def _watched(name: str, tensor: torch.Tensor, selection: Selection) -> Watched:
    source = str(tensor.dtype).removeprefix("torch.")
    shape = tuple(tensor.shape)
    # As it is where that takes no more bytes, as of rows so short that their scales outweigh them: it loses nothing.
    sizes = {dtype: DTYPES[dtype].num_bytes(math.prod(shape), shape) for dtype in (source, selection.dtype)}
    dtype = source if sizes[source] <= sizes[selection.dtype] else selection.dtype
    is_first = _matches(name, selection.priority)
    return Watched(name, tensor, shape, source, dtype, sizes[dtype], tensor.is_cuda, is_first)


def allocate(num_bytes: int, pinned: bool = False) -> Memory:
    """Memory for the arena, its pages touched now and not during a push; page-locked if a GPU is to write into it.

    On the CPU an anonymous mapping: in huge pages where the system has them, and left out of forked children, where
    each later write of the trainer's would otherwise have to copy a page first.
    """
    import torch

    if pinned:
        owner = torch.empty(num_bytes, dtype=torch.uint8, device="cpu", pin_memory=True)
        array = (ctypes.c_ubyte * num_bytes).from_address(owner.data_ptr())
        array._owner = owner  # type: ignore[attr-defined]  # lives as long as a view of it
        return Memory(memoryview(array).cast("B"), owner)
    buffer = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    for advice in ("MADV_HUGEPAGE", "MADV_DONTFORK"):
        with suppress(OSError, AttributeError):
            buffer.madvise(getattr(mmap, advice))
    owner = torch.frombuffer(buffer, dtype=torch.uint8)
    owner.zero_()
    return Memory(memoryview(buffer), owner)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """One intra-op thread (two on busy cores were up to 15 times slower than one), and no autograd; both restored."""
    import torch

    num_threads = torch.get_num_threads()
    if num_threads != 1:
        torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), torch.no_grad():
            yield
    finally:
        if num_threads != 1:
            torch.set_num_threads(num_threads)


def capturing() -> bool:
    """Whether a CUDA graph is being captured on this thread: a copy would become part of it, or break it."""
    import torch

    return bool(torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing())  # type: ignore[no-untyped-call]


def copy(item: Watched, region: Region) -> tuple[str, int]:
    """Copy a watched tensor into `region`, row-major. Returns its dtype there and the device memory taken in passing.

    float16 holds nothing beyond 65504 and little below 1e-7: a layer that would overflow, or vanish altogether, goes as
    bfloat16 (as many bytes, float32's range) rather than raise a false alarm. NaN and Inf travel as they are.
    """
    dtype, device_bytes = item.dtype, 0
    source = item.tensor.detach()
    if DTYPES[dtype].scaled:
        return dtype, copy_scaled(dtype, source, _bytes(region).view(-1, row_elements(item.shape) + SCALE_BYTES))
    if source.is_cuda and dtype != item.source_dtype:
        device_bytes = item.num_bytes
    _copy_as(dtype, source, item, region)
    if dtype == "float16" and item.source_dtype != "float16":
        low, high = (float(value) for value in _view(dtype, item, region).aminmax())
        if math.isinf(low) or math.isinf(high) or low == high == 0.0:
            dtype = "bfloat16"
            _copy_as(dtype, source, item, region)
    return dtype, device_bytes


def _copy_as(dtype: str, source: torch.Tensor, item: Watched, region: Region) -> None:
    target = _view(dtype, item, region)
    # On a GPU the cast belongs there: half the bytes cross the bus, and a copy that casts would go by pageable memory.
    target.copy_(source.to(target.dtype).contiguous() if source.is_cuda else source)


def _view(dtype: str, item: Watched, region: Region) -> torch.Tensor:
    import torch

    dtypes = {
        "float64": torch.float64,
        "float32": torch.float32,
        "float16": torch.float16,
        "bfloat16": torch.bfloat16,
    }
    return _bytes(region).view(dtypes[dtype]).view(item.shape)


def _bytes(region: Region) -> torch.Tensor:
    owner: torch.Tensor = region.block.memory.owner
    return owner[region.start : region.start + region.num_bytes]
