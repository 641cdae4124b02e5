"""Looking at a model again: only where something about its parameters has changed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rankd_client.watch.model import watch
from rankd_client.watch.place import Adapter
from rankd_client.watch.watched import Selection, Watched

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class _Module:
    """A module's own tables, as they were: how many parameters, which children."""

    parameters: dict[str, Any]
    num_parameters: int
    children: dict[str, Any]
    before: tuple[Any, ...]

    def is_same(self) -> bool:
        return len(self.parameters) == self.num_parameters and tuple(self.children.values()) == self.before


@dataclass(frozen=True, slots=True)
class _Matrix:
    """A parameter, and its memory, which is another one where the dtype or device is."""

    parameters: dict[str, Any]
    name: str
    parameter: torch.Tensor
    address: int
    shape: tuple[int, ...]

    def is_same(self) -> bool:
        parameter = self.parameters.get(self.name)
        return parameter is self.parameter and parameter.data_ptr() == self.address and parameter.shape == self.shape


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
        self._on_gone = on_gone
        self._model: weakref.ref[Any] | None = None
        self._seen: list[_Module | _Matrix] = []
        self._found: tuple[tuple[Watched, ...], Mapping[str, str]] = ((), {})

    def look(self, model: Any) -> tuple[list[Watched], dict[str, str]]:
        """As `watch` does. Raises TypeError where that does."""
        is_known = self._model is not None and self._model() is model
        self.again = is_known and all(part.is_same() for part in self._seen)
        if self.again:
            return list(self._found[0]), dict(self._found[1])
        self._model = None
        seen = self._parts(model)
        watched, skipped = watch(model, self.selection, self.adapters)
        if seen is not None:
            self._seen, self._found = seen, (tuple(watched), dict(skipped))
            self._model = weakref.ref(model, self._forget)
        return watched, skipped

    def _forget(self, gone: Any) -> None:
        if self._model is gone:
            self._model, self._seen, self._found = None, [], ((), {})
            self._on_gone()

    def _parts(self, model: Any) -> list[_Module | _Matrix] | None:
        """What tells a model from itself as it was: its modules, and its parameters with their memory. None of one
        whose parameters may be something else than they were without a trace: those are looked at each time, and so is
        what is no module."""
        import torch

        if self.adapters or self.selection.masters or not isinstance(model, torch.nn.Module):
            return None
        if type(model).named_parameters is not torch.nn.Module.named_parameters:
            return None  # as FSDP's, which names them its own way
        found: list[_Module | _Matrix] = []
        plain = (torch.nn.Parameter, torch.Tensor)
        modules = list(model.modules())
        for module in modules:
            own, children = module._parameters, module._modules
            found.append(_Module(own, len(own), children, tuple(children.values())))
            for name, parameter in own.items():
                if parameter is None:
                    continue
                if type(parameter) not in plain or hasattr(parameter, "ds_tensor"):
                    return None
                if parameter.dim() > 1:
                    found.append(_Matrix(own, name, parameter, parameter.data_ptr(), parameter.shape))
        return found
