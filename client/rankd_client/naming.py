"""What a layer is called: its parameter's own name, whatever wraps the model. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

__all__ = ["clean_name", "clean_names"]


def clean_name(name: str) -> str:
    """`name` without the components that wrappers add: `_orig_mod` anywhere (torch.compile wraps any submodule) and
    `module` at the front (DDP and DataParallel wrap the whole model).

    Every leading `module` goes, so that cleaning twice changes nothing, and a model whose own first attribute is called
    `module` has the same layer names with and without DDP. A name of nothing but such components stays as it is.
    """
    parts = [part for part in name.split(".") if part != "_orig_mod"]
    start = 0
    while start < len(parts) and parts[start] == "module":
        start += 1
    return ".".join(parts[start:]) or name


def clean_names(names: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Pairs of a name and what to call it: cleaned, unless an earlier one is called so already (two different layers
    must never become one)."""
    taken: set[str] = set()
    for name in names:
        clean = clean_name(name)
        if clean in taken:
            clean = name
        taken.add(clean)
        yield name, clean
