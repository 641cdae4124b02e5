"""The tensors of a model, or of a mapping, as they are watched; and why the others are not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from rankd_client.naming import clashes, clean_names
from rankd_client.text import escape
from rankd_client.watch.frameworks import adapters_of, tensors_of
from rankd_client.watch.masters import Masters
from rankd_client.watch.parametrised import ParametrisedAdapter
from rankd_client.watch.place import Adapter, CheckedAdapter, Place
from rankd_client.watch.source import Source, source_of
from rankd_client.watch.unfit import unfit, unfit_name
from rankd_client.watch.watched import Selection, Watched, matches
from rankd_client.wire import DTYPES

if TYPE_CHECKING:
    import torch

COARSEST = "bfloat16"
"""Of the dtypes without scales; every source is at least as wide."""

Found = tuple[list[Watched], dict[str, str]]


def watch(model: Any, selection: Selection, adapters: Sequence[Adapter] = ()) -> Found:
    """The watched tensors of a module, or of a mapping of name -> tensor, in its order; and why the others are not.

    Watched is every parameter of two or more dimensions in a floating dtype, or quantised. Tied weights count once,
    under their first name. Raises TypeError if `model` is neither.
    """
    tensors = list(_tensors(model))
    clean = clean_names(name for name, _ in tensors if isinstance(name, str))
    num_called = Counter(clean.values())
    watched: dict[str, Watched] = {}  # by the name that the model has
    skipped: dict[str, str] = {}
    seen: dict[tuple[Any, ...], str] = {}  # identity of a tensor's memory -> what it was called first
    masters = Masters(selection.optimizers) if selection.masters else None
    adapters = [*map(CheckedAdapter, adapters), *_built_in(model)]
    for raw_name, tensor in tensors:
        if not isinstance(raw_name, str):
            skipped[escape(raw_name)] = "name is not a string"
            continue
        name = clean[raw_name]
        find = partial(source_of, tensor, masters, partial(_owner, model, raw_name))
        found = look(name, find, selection, adapters, seen)
        if isinstance(found, Watched):
            watched[raw_name] = found
        else:
            skipped[name if num_called[name] == 1 else raw_name] = found
    if not tensors:
        skipped = _packed(model)
    clashing = clashes({raw_name: item.name for raw_name, item in watched.items()})
    return [item for raw_name, item in watched.items() if raw_name not in clashing], skipped | clashing


def _tensors(model: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(model, Mapping):
        return iter(model.items())
    if callable(getattr(model, "named_parameters", None)):
        return tensors_of(model) or iter(model.named_parameters(remove_duplicate=False))
    raise TypeError(f"model={type(model).__name__}: expected a torch.nn.Module or a mapping of name -> tensor")


def _built_in(model: Any) -> Iterator[Adapter]:
    """What is known of this model without anybody's help."""
    if (parametrised := ParametrisedAdapter.of(model)) is not None:
        yield parametrised
    yield from adapters_of(model)


def _owner(model: Any, name: str) -> Any:
    """The module that has a parameter of this name; None in a mapping."""
    return None if isinstance(model, Mapping) else model.get_submodule(name.rpartition(".")[0])


def _packed(model: Any) -> dict[str, str]:
    """Of a model without parameters, the modules whose weights are where nobody can read them."""
    modules = model.named_modules() if callable(getattr(model, "named_modules", None)) else ()
    return {name: "packed by torch.ao.quantization" for name, module in modules if hasattr(module, "_packed_params")}


def look(
    name: str,
    find: Callable[[], Source | str],
    selection: Selection,
    adapters: Sequence[Adapter],
    seen: dict[tuple[Any, ...], str],
) -> Watched | str:
    """The tensor that `find` gives as it is watched, or the reason why not. One that breaks as it is looked at, such as
    a nested one, costs the others nothing."""
    try:
        source = find()
        place = source if isinstance(source, str) else _place(name, source, adapters)
        called = name if isinstance(place, str) else place.name
        if (reason := unfit_name(called) or ("excluded" if selection.refuses(called) else None)) is not None:
            return reason
        if isinstance(place, str) or isinstance(source, str):
            return str(place)
        if (reason := unfit(place.tensor, place.shape, source.quantised is not None)) is not None:
            return reason
        if (reason := _too_large(source, selection)) is not None:
            return reason
        item, identity = _watched(place, source, selection), _identity(place.tensor)
        if identity in seen:
            return f"tied to {seen[identity]}"
        seen[identity] = name
        return item
    except Exception as error:
        return f"cannot be read: {type(error).__name__}"


def _too_large(source: Source, selection: Selection) -> str | None:
    limit, kept = selection.max_decoded_bytes, source.quantised
    if kept is None or limit is None or kept.decoded_bytes <= limit:
        return None
    return f"{kept.source_dtype} takes {kept.decoded_bytes} bytes decoded, more than max_push_bytes"


def _place(name: str, source: Source, adapters: Sequence[Adapter]) -> Place | str:
    """What the first adapter says that knows this tensor; without one it is the whole, and every process has it."""
    for adapter in adapters:
        if (found := adapter.place(name, source.parameter)) is not None:
            if isinstance(found, Place) and source.quantised is not None:
                return replace(found, shape=source.shape) if found.shard.whole else "quantised and sharded"
            if isinstance(found, str) or source.parameter is source.tensor:
                return found
            if found.tensor.shape != source.tensor.shape:
                return "its part has another order than that of its float32 copy"
            return replace(found, tensor=source.tensor)
    return Place(name, source.tensor, source.shape)


def _watched(place: Place, of: Source, selection: Selection) -> Watched:
    kept = of.quantised
    source, shape = str(place.tensor.dtype).removeprefix("torch.") if kept is None else kept.carrier, place.shape
    num_elements = place.shard.num_elements(shape)
    # As it is where that takes no more bytes, as of rows so short that their scales outweigh them: it loses nothing.
    sizes = {dtype: DTYPES[dtype].num_bytes(math.prod(shape), shape) for dtype in (source, selection.dtype, COARSEST)}
    dtype = source if sizes[source] <= sizes[selection.dtype] else selection.dtype
    if DTYPES[dtype].scaled and not place.shard.has_whole_rows(shape):
        dtype = COARSEST  # a scale belongs to a whole row, and others have the rest of this one
    if dtype == "float16" != source and not place.shard.whole:
        dtype = COARSEST  # whether it overflows is seen of the whole alone, and all parts are to be of one dtype
    return Watched(
        place.name,
        place.tensor,
        shape,
        source if kept is None else kept.source_dtype,
        dtype,
        DTYPES[dtype].num_bytes(num_elements, shape),
        place.tensor.is_cuda,
        matches(place.name, selection.priority),
        shard=place.shard,
        turn_bytes=-(-sizes[dtype] // place.num_shards),
        group=place.group or ("" if place.shard.whole else "shards"),
        replica=place.replica,
        decode=place.decode if kept is None else kept.decode,
        decoded_bytes=_decoded_bytes(place) if kept is None else kept.decoded_bytes,
        is_master=of.is_master,
        note=of.note,
    )


def _decoded_bytes(place: Place) -> int:
    return 0 if place.decode is None else place.tensor.numel() * place.tensor.element_size()


def _identity(tensor: torch.Tensor) -> tuple[Any, ...]:
    """Equal for two names of one matrix, such as a `state_dict()` has them for tied weights."""
    return tensor.device, tensor.data_ptr() or id(tensor), tensor.shape, tensor.stride(), tensor.dtype
