"""Looking at a model again: only where something about its parameters has changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rankd_client.watch.frameworks.dtensor import is_dtensor
from rankd_client.watch.model import watch
from rankd_client.watch.place import Adapter
from rankd_client.watch.watched import Selection, Watched

MOVED = ("ds_tensor", "_fsdp_flattened")
"""Attributes of parameters whose values are elsewhere, where frameworks move them about: ZeRO-3's, FSDP1's."""

_Module = tuple[dict[str, Any], int, dict[str, Any], tuple[Any, ...], tuple[str, ...]]
"""A module's table of parameters, and how many there were; of children, and which; names under which there is none."""

_Matrix = tuple[dict[str, Any], str, Any, int, tuple[int, ...]]
"""The table that a parameter is in, its name there, itself, and its memory: an address, which is another one where the
dtype or device is, and a shape."""

_Seen = tuple[list[_Module], list[_Matrix], list[_Matrix]]
"""The last are DTensors, with the address of this process's part."""


class Watcher:
    """`watch`, with a memory of the model that it saw last: a thousand names are looked at in a twentieth of the time.

    What is remembered goes with the model: nothing of it is kept alive, and `on_gone` is called. `again`: what was
    found last is what was found before, object for object.
    """

    def __init__(
        self, selection: Selection, adapters: Sequence[Adapter] = (), on_gone: Callable[[], None] = lambda: None
    ) -> None:
        self.selection = selection
        self.adapters = tuple(adapters)
        self.again = False
        self.kept: Any = None
        """What somebody made of what was found last, or None: it goes with it."""
        self._on_gone = on_gone
        self._model: weakref.ref[Any] | None = None
        self._seen: _Seen = ([], [], [])
        self._found: tuple[tuple[Watched, ...], Mapping[str, str]] = ((), {})

    def keep(self, made: Any) -> None:
        """Have `kept` as long as the model is the same; nothing of one that is looked at each time."""
        self.kept = made if self._model is not None else None

    def is_same(self, model: Any) -> bool:
        """Whether `look` will find what it found the last time."""
        return self._model is not None and self._model() is model and _is_same(*self._seen)

    def look(self, model: Any, again: bool | None = None) -> tuple[list[Watched], dict[str, str]]:
        """As `watch` does; `again` is what `is_same` said just now. Raises TypeError where that does."""
        self.again = self.is_same(model) if again is None else again
        if self.again:
            return list(self._found[0]), dict(self._found[1])
        self._model = self.kept = None
        seen = self._parts(model)
        watched, skipped = watch(model, self.selection, self.adapters)
        if seen is not None:
            self._seen, self._found = seen, (tuple(watched), dict(skipped))
            self._model = weakref.ref(model, self._forget)
        return watched, skipped

    def _forget(self, gone: Any) -> None:
        if self._model is gone:
            self._model = self.kept = None
            self._seen, self._found = ([], [], []), ((), {})
            self._on_gone()

    def _parts(self, model: Any) -> _Seen | None:
        """What tells a model from itself as it was: its modules, and its parameters with their memory. None of one
        whose parameters may be something else than they were without a trace: those are looked at each time, and so is
        what is no module."""
        import torch

        if self.adapters or self.selection.masters or not isinstance(model, torch.nn.Module):
            return None
        if type(model).named_parameters is not torch.nn.Module.named_parameters:
            return None  # as FSDP's, which names them its own way
        modules: list[_Module] = []
        matrices: list[_Matrix] = []
        shards: list[_Matrix] = []
        plain = (torch.nn.Parameter, torch.Tensor)
        for module in model.modules():
            own: dict[str, Any] = module._parameters
            children = module._modules
            absent = tuple(name for name, parameter in own.items() if parameter is None)
            modules.append((own, len(own), children, tuple(children.values()), absent))
            for name, parameter in own.items():
                if parameter is None:
                    continue
                if is_dtensor(parameter):
                    shards.append((own, name, parameter, parameter._local_tensor.data_ptr(), parameter.shape))
                elif type(parameter) not in plain or any(hasattr(parameter, mark) for mark in MOVED):
                    return None
                elif parameter.dim() > 1:
                    matrices.append((own, name, parameter, parameter.data_ptr(), parameter.shape))
        return modules, matrices, shards


def _is_same(modules: list[_Module], matrices: list[_Matrix], shards: list[_Matrix]) -> bool:
    """In one loop each, and no more calls than are needed: it is done at each push, while a GPU waits for its next
    launch and the caches are cold."""
    for own, count, children, before, absent in modules:
        if len(own) != count or (children and tuple(children.values()) != before) or (before and not children):
            return False
        for name in absent:
            if own.get(name) is not None:
                return False
    for own, name, parameter, address, shape in matrices:
        if parameter.data_ptr() != address or parameter.shape != shape or own.get(name) is not parameter:
            return False
    for own, name, parameter, address, shape in shards:
        if parameter._local_tensor.data_ptr() != address or parameter.shape != shape or own.get(name) is not parameter:
            return False
    return True
