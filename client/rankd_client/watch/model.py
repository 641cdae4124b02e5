"""The tensors of a model, or of a mapping, as they are watched; and why the others are not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rankd_client.naming import clashes, clean_names
from rankd_client.text import escape
from rankd_client.watch.place import Adapter, Place
from rankd_client.watch.unfit import no_tensor, unfit, unfit_name
from rankd_client.watch.watched import Selection, Watched, matches
from rankd_client.wire import DTYPES

if TYPE_CHECKING:
    import torch

COARSEST = "bfloat16"
"""Of the dtypes without scales; every source is at least as wide."""

Found = tuple[list[Watched], dict[str, str]]


def watch(model: Any, selection: Selection, adapters: Sequence[Adapter] = ()) -> Found:
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
        found = _look(name, tensor, selection, adapters, seen)
        if isinstance(found, Watched):
            watched[raw_name] = found
        else:
            skipped[name if num_called[name] == 1 else raw_name] = found
    clashing = clashes({raw_name: item.name for raw_name, item in watched.items()})
    return [item for raw_name, item in watched.items() if raw_name not in clashing], skipped | clashing


def _tensors(model: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(model, Mapping):
        return iter(model.items())
    if callable(getattr(model, "named_parameters", None)):
        return iter(model.named_parameters(remove_duplicate=False))
    raise TypeError(f"model={type(model).__name__}: expected a torch.nn.Module or a mapping of name -> tensor")


def _look(
    name: str, tensor: Any, selection: Selection, adapters: Sequence[Adapter], seen: dict[tuple[Any, ...], str]
) -> Watched | str:
    """The tensor as it is watched, or the reason why not. One that breaks as it is looked at, such as a nested one,
    costs the others nothing."""
    try:
        place = _place(name, tensor, adapters)
        called = name if isinstance(place, str) else place.name
        if (reason := unfit_name(called) or ("excluded" if selection.refuses(called) else None)) is not None:
            return reason
        if isinstance(place, str):
            return place
        if (reason := unfit(place.tensor, place.shape)) is not None:
            return reason
        item, identity = _watched(place, selection), _identity(place.tensor)
        if identity in seen:
            return f"tied to {seen[identity]}"
        seen[identity] = name
        return item
    except Exception as error:
        return f"cannot be read: {type(error).__name__}"


def _place(name: str, tensor: Any, adapters: Sequence[Adapter]) -> Place | str:
    """What the first adapter says that knows this tensor; without one it is the whole, and every process has it."""
    for adapter in adapters:
        if (found := adapter.place(name, tensor)) is not None:
            return found
    if (reason := no_tensor(tensor)) is not None:
        return reason
    return Place(name, tensor, tuple(tensor.shape))


def _watched(place: Place, selection: Selection) -> Watched:
    source, shape = str(place.tensor.dtype).removeprefix("torch."), place.shape
    num_elements = place.shard.num_elements(shape)
    # As it is where that takes no more bytes, as of rows so short that their scales outweigh them: it loses nothing.
    sizes = {dtype: DTYPES[dtype].num_bytes(math.prod(shape), shape) for dtype in (source, selection.dtype, COARSEST)}
    dtype = source if sizes[source] <= sizes[selection.dtype] else selection.dtype
    if DTYPES[dtype].scaled and not place.shard.has_whole_rows(shape):
        dtype = COARSEST  # a scale belongs to a whole row, and others have the rest of this one
    return Watched(
        place.name,
        place.tensor,
        shape,
        source,
        dtype,
        DTYPES[dtype].num_bytes(num_elements, shape),
        place.tensor.is_cuda,
        matches(place.name, selection.priority),
        shard=place.shard,
        turn_bytes=-(-sizes[dtype] // place.num_shards),
        replica=place.replica,
    )


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two names of one matrix, such as a `state_dict()` has them for tied weights."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype
