"""What is pushed beside a model: features of a batch, gradients, momenta, updates, under names of the user's."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from rankd_client.naming import clashes, clean_names, label_of
from rankd_client.text import escape
from rankd_client.watch.frameworks import adapters_of
from rankd_client.watch.model import Found, look
from rankd_client.watch.place import Adapter, CheckedAdapter
from rankd_client.watch.source import Source, source_of
from rankd_client.watch.watched import Selection, Watched
from rankd_client.wire.fields import ROLES

FEATURE = "feature"
OTHER_ROLES = tuple(role for role in ROLES if role != "weight")
"""A weight is pushed as the model, or as a mapping: here it would be a second one of its name."""


def watch_also(also: Any, selection: Selection, adapters: Sequence[Adapter] = ()) -> Found:
    """The tensors of a mapping of name -> tensor, which is a feature, or (role, tensor); and why the others are not.

    `selection` says in which dtype they travel; whoever hands a tensor over wants it, whatever its include and exclude.
    A feature (…, dim) is a matrix of as many rows as there are vectors; other roles are shaped as their weights are.
    """
    if not isinstance(also, Mapping):
        return [], {"also": f"{type(also).__name__}: expected a mapping of name -> tensor, or (role, tensor)"}
    selection = Selection(selection.dtype, max_decoded_bytes=selection.max_decoded_bytes)
    adapters = [*map(CheckedAdapter, adapters), *adapters_of(also)]
    skipped: dict[str, str] = {}
    by_role: dict[str, dict[str, Any]] = {}
    for name, value in also.items():
        role, tensor = value if _is_pair(value) else (FEATURE, value)
        if not isinstance(name, str):
            skipped[f"{escape(name)} (also)"] = "name is not a string"
        elif role not in OTHER_ROLES:
            skipped[f"{name} (also)"] = f"role {escape(role, 40)}: expected {', '.join(OTHER_ROLES)}"
        else:
            by_role.setdefault(role, {})[name] = tensor
    watched: list[Watched] = []
    for role, tensors in by_role.items():
        found, reasons = _of_role(role, tensors, selection, adapters)
        watched += found
        skipped |= reasons
    return watched, skipped


def fitting(items: Sequence[Watched], max_bytes: int, last_pushes: Mapping[str, int] | None) -> list[Watched]:
    """Those to push now, within `max_bytes`: the stalest first by the numbers of the pushes that their labels last went
    with. None: in jobs of several processes, which must choose alike, in their order."""
    order = items if last_pushes is None else sorted(items, key=lambda item: last_pushes.get(item.label, -1))
    chosen = []
    for item in order:
        num_bytes = item.turn_bytes if last_pushes is None else item.num_bytes
        if num_bytes <= max_bytes:
            chosen.append(item)
            max_bytes -= num_bytes
    return chosen


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and isinstance(value[0], str)


def _of_role(role: str, tensors: Mapping[str, Any], selection: Selection, adapters: Sequence[Adapter]) -> Found:
    """Names are cleaned as those of a model are: a gradient is called as its weight."""
    clean = clean_names(tensors)
    clashing = clashes(clean)
    watched, skipped = [], {label_of(name, role): reason for name, reason in clashing.items()}
    for name, tensor in tensors.items():
        if name in clashing:
            continue
        find = partial(_feature if role == FEATURE else _shaped, tensor)
        found = look(clean[name], find, selection, adapters, {})
        if isinstance(found, Watched):
            watched.append(replace(found, role=role))
        else:
            skipped[label_of(clean[name], role)] = found
    return watched, skipped


def _shaped(tensor: Any) -> Source | str:
    return source_of(tensor, None, lambda: None)


def _feature(tensor: Any) -> Source | str:
    """As (vectors, dim). It need not be reshaped for that: its elements are copied in the same order."""
    found = source_of(tensor, None, lambda: None)
    if isinstance(found, str) or len(found.shape) <= 2:
        return found
    if hasattr(tensor, "device_mesh"):
        return "a sharded feature of more than 2 dimensions: expected (vectors, dim)"
    return replace(found, shape=(math.prod(found.shape[:-1]), found.shape[-1]))
