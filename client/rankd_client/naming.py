"""What a layer is called: its parameter's own name, whatever wraps the model. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["clashes", "clean_names", "label_of"]

WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What torch.compile, FSDP1 and activation checkpointing put between a module's name and those of its parameters."""


def clean_names(names: Iterable[str]) -> dict[str, str]:
    """Each of a model's names with what to call it: without the components that wrappers add.

    Those of WRAPPERS go anywhere, as any submodule may be wrapped. A leading `module` goes where all names have it, as
    DDP and DataParallel wrap the whole model: a submodule that is called so beside others keeps its name. It goes as
    often as all names have it, so that a model whose only submodule is called `module` has the same names with and
    without DDP. A name of nothing but such components stays as it is.
    """
    clean = {name: _unwrapped(name) for name in names}
    while clean and all(name.startswith("module.") and name != "module." for name in clean.values()):
        clean = {name: shorter.removeprefix("module.") for name, shorter in clean.items()}
    return clean


def label_of(name: str, role: str) -> str:
    """What receipts and alerts call a tensor: its gradient has a weight's own name."""
    return name if role == "weight" else f"{name} ({role})"


def clashes(clean: Mapping[str, str]) -> dict[str, str]:
    """Of names as `clean_names` has them, those that are called alike, with the reason to take neither: the history of
    one would become the other's."""
    first: dict[str, str] = {}
    reasons: dict[str, str] = {}
    for name, called in clean.items():
        other = first.setdefault(called, name)
        if other != name:
            reasons[other] = reasons[name] = f"{other!r} and {name!r} are both called {called!r}"
    return reasons


def _unwrapped(name: str) -> str:
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    return ".".join(part for part in name.split(".") if part not in WRAPPERS) or name
