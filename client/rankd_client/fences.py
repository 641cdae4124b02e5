"""Who makes the training wait for copies that still go on: `push` itself, or the next optimizer step."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable, Sequence, Set
from typing import Any

from rankd_client.naming import clean_names

MAX_WRAPPED = 64
"""Optimizers inside optimizers that are looked through: a chain that leads back to itself has an end too."""


class Fence:
    """Whether the wait may be left to a hook before the next optimizer step. Only where that has shown that it runs:
    in a replayed CUDA graph no hook does, and neither does one of an optimizer that the model's weights are not of."""

    def __init__(self, wait: Callable[[], None], capturing: Callable[[], bool]) -> None:
        self._wait = wait
        self._capturing = capturing
        self._models: dict[int, weakref.ref[Any]] = {}
        self._unseen: set[int] = set()
        """Optimizers whose hook has never run."""
        self._is_proven = False
        """A hook has run since the last push."""

    def watch(self, model: Any, optimizers: Sequence[Any], wanted: Callable[[str], bool] = lambda name: True) -> bool:
        """A model whose weights change in steps of these optimizers alone; False where some are not theirs. Frozen ones
        are not either: they may be an average that is written after each step, by ways that leave no trace. `wanted`:
        which of the names are pushed."""
        self._unseen |= {id(optimizer) for optimizer in optimizers}
        parameters = {id(p) for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
        matrices = {name: p for name, p in model.named_parameters() if p.dim() > 1}
        clean = clean_names(matrices)
        covered = all(id(p) in parameters for name, p in matrices.items() if wanted(clean[name]))
        if covered:
            self._models[id(model)] = weakref.ref(model)
        return covered

    def forget(self, model_id: int, optimizer_ids: Set[int]) -> None:
        """Their hooks are gone, on which copies that still go on may rely."""
        self._models.pop(model_id, None)
        self._unseen -= optimizer_ids
        self.now()

    def now(self) -> None:
        """Somebody is about to change weights otherwise."""
        if not self._capturing():
            self._wait()

    def before_step(self, optimizer: Any) -> None:
        """An optimizer is about to change weights."""
        if self._capturing():  # waiting for what is not in the graph would break it; and its replays run no hook
            self._unseen.add(id(optimizer))
            self._is_proven = False
            return
        self._unseen.discard(id(optimizer))
        self._is_proven = True
        self._wait()

    def pushed(self, model: Any) -> None:
        """Copies of `model` were begun: wait for them now, unless that is sure to happen later."""
        attached = self._models.get(id(model))
        is_safe = self._is_proven and not self._unseen and attached is not None and attached() is model
        self._is_proven = False
        if not is_safe:
            self._wait()


class Attachment:
    """A model and its optimizers that a client is attached to; `detach` ends it."""

    def __init__(
        self, model: Any, optimizers: Sequence[Any], every: int | None, step: int, push: Callable[[Any, int], Any]
    ) -> None:
        hooked = [hooked_of(optimizer) for optimizer in optimizers]
        self.model_id, self.optimizer_ids = id(model), {id(optimizer) for optimizer in hooked}
        self._model = weakref.ref(model)
        self._every = every
        self._push = push
        self._next_step = step
        self._hooks: list[Any] = []
        self.optimizers = tuple(weakref.ref(optimizer) for optimizer in optimizers)
        self._hooked = {id(optimizer): weakref.ref(optimizer) for optimizer in hooked}
        self._last = weakref.ref(hooked[-1])
        self._detached: Callable[[], None] = lambda: None

    def hook(
        self,
        before_step: Callable[[Any], None],
        guard: Callable[[Callable[[], Any]], None],
        detached: Callable[[], None] = lambda: None,
    ) -> None:
        """Have `before_step` called before each step, and `detached` when there are no hooks any more. `guard` calls
        what it is given, and lets nothing through that this raises."""
        self._detached = lambda: guard(detached)
        for optimizer in filter(None, (reference() for reference in self._hooked.values())):
            self._hooks.append(optimizer.register_step_pre_hook(lambda which, *_: guard(lambda: before_step(which))))
            self._hooks.append(optimizer.register_step_post_hook(lambda which, *_: guard(lambda: self._stepped(which))))

    def by_hand(self) -> None:
        """Somebody pushes the model himself: twice would be one too many."""
        self._every = None

    def detach(self) -> None:
        """Remove the hooks; copies that still go on are waited for now, on the device. Any number of times."""
        while self._hooks:
            self._hooks.pop().remove()
        detached, self._detached = self._detached, lambda: None
        detached()

    def _stepped(self, optimizer: Any) -> None:
        if optimizer is not self._last():  # of several, the last one given ends a step
            return
        step, model = self._next_step, self._model()
        self._next_step += 1
        if self._every is not None and model is not None and step % self._every == 0:
            self._push(model, step)


def hooked_of(optimizer: Any) -> Any:
    """The optimizer whose hooks run: of a wrapper that is one by its class alone, as Accelerate's, what is inside.
    None: there is none."""
    for _ in range(MAX_WRAPPED):
        if not callable(getattr(optimizer, "register_step_pre_hook", None)) or not hasattr(optimizer, "param_groups"):
            return None
        if hasattr(optimizer, "_optimizer_step_pre_hooks"):
            return optimizer
        optimizer = getattr(optimizer, "optimizer", None)
    return None


def check_attached(model: Any, optimizer: Any, every: int | None, step: int) -> list[Any]:
    """The optimizers. Raises TypeError or ValueError naming what is wrong."""
    optimizers = list(optimizer) if isinstance(optimizer, list | tuple) else [optimizer]
    if not callable(getattr(model, "parameters", None)):
        raise TypeError(f"model={type(model).__name__}: expected a torch.nn.Module")
    if not optimizers:
        raise ValueError("optimizer=[]: expected a torch.optim.Optimizer, or several")
    for one in optimizers:
        if hooked_of(one) is None:
            raise TypeError(f"optimizer={type(one).__name__}: expected a torch.optim.Optimizer, or several")
    for key, value, least in (("every", every, 1), ("step", step, 0)):
        if value is not None and (isinstance(value, bool) or operator.index(value) < least):
            raise ValueError(f"{key}={value!r}: expected an integer of at least {least}")
    return optimizers
