"""Which tensor stands for a parameter: its optimizer's float32 copy, or itself, quantised or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rankd_client.watch.frameworks.fsdp1 import FlatPart
from rankd_client.watch.masters import Masters
from rankd_client.watch.quantised import Quantised, quantised
from rankd_client.watch.unfit import no_tensor


@dataclass(frozen=True, slots=True)
class Source:
    """What is looked at in a parameter's place, of this `shape`. `parameter`: by what its place in the whole is known.
    `note`: why it is the parameter though there is a copy of it."""

    tensor: Any
    shape: tuple[int, ...]
    parameter: Any
    quantised: Quantised | None = None
    is_master: bool = False
    note: str = ""


def source_of(tensor: Any, masters: Masters | None, owner: Callable[[], Any]) -> Source | str:
    """Of one parameter (or anything else that has a name), which `owner` gives the module of; or why there is none."""
    if isinstance(tensor, FlatPart):
        return Source(tensor, tensor.shape, tensor)
    if (reason := no_tensor(tensor)) is not None:
        return reason
    master = None if masters is None else masters.of(tensor)
    if master is not None and not isinstance(master, str):
        return Source(master, tuple(master.shape), master if hasattr(master, "device_mesh") else tensor, is_master=True)
    found = quantised(tensor, owner)
    if isinstance(found, str):
        return found
    return Source(tensor, tuple(tensor.shape) if found is None else found.shape, tensor, found, note=master or "")
