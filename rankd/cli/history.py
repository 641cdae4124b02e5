"""What the verbs of the history share: opening it, finding a run in it, and a reader of the output who leaves early."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rankd.cli.common import PROBLEM, WRONG_USE, leave
from rankd.cli.settings import find_file, read_file
from rankd_client.text import escape

if TYPE_CHECKING:
    from rankd.store.reader import Reader
    from rankd.store.rows import RunRow

MAX_NEAR = 5

Data = Annotated[Path | None, typer.Option("--data", envvar="RANKD_DATA", help="The daemon's data directory.")]
Layers = Annotated[list[str] | None, typer.Option("--layer", help="Only layers like this glob; may be repeated.")]
Current = Annotated[
    bool, typer.Option("--current", help="Without what a return to an earlier checkpoint has made void.")
]


def find_data(given: Path | None) -> Path | None:
    """The directory that `rankd serve` would write with the same environment and settings file."""
    if given is not None:
        return given
    _, settings = find_settings(os.environ.get("RANKD_CONFIG"))
    data = settings.get("data")
    if data is not None and not isinstance(data, str):
        leave(f"data={escape(repr(data))}: expected a path", WRONG_USE)
    return Path(data) if data else None


def find_settings(given: str | None) -> tuple[Path | None, dict[str, Any]]:
    """The settings file that `rankd serve` would read, and what it holds. Leaves where it cannot be read."""
    from rankd.config import ConfigError

    file = find_file(given, lambda words: print(f"rankd: {escape(words, 500)}", file=sys.stderr))
    try:
        return file, read_file(file)
    except ConfigError as error:
        leave(escape(str(error)), WRONG_USE)


@contextmanager
def open_history(data: Path | None) -> Iterator[Reader]:
    """The history in `data`, or where `find_data` says. Leaves where there is none (2) or it cannot be read (1)."""
    from rankd.store.errors import StoreError
    from rankd.store.reader import Reader

    found = find_data(data)
    if found is None:
        leave(
            "no --data DIR, no RANKD_DATA and no [serve] data in rankd.toml; expected the directory that "
            "`rankd serve --data DIR` writes",
            WRONG_USE,
        )
    try:
        with Reader(found) as reader:
            yield reader
    except StoreError as error:
        leave(escape(str(error)), WRONG_USE if error.kind == "missing" else PROBLEM)


def find_run(reader: Reader, name: str, first: str = "") -> RunRow:
    """The run of that name. Leaves naming those that come near, after the words `first`."""
    found = reader.run(name)
    if found is None:
        names = [row.name for row in reader.runs()]
        same = [full for full in names if full.rpartition("/")[2] == name]
        leave(f"{first}no run {escape(name)!r} in {reader.file.parent}; {_near(name, names, same)}", PROBLEM)
    return found


def check_layers(reader: Reader, run: str, globs: Sequence[str], role: str | None = None) -> None:
    """Leaves where no layer of the run is like any of the globs, or none has that role, naming those there are."""
    layers = reader.layers(run)
    roles = sorted({layer.role for layer in layers})
    if role is not None and role not in roles:
        leave(f"--role {escape(role)!r}: no such layers in {escape(run)}; there are {_listed(roles)}", PROBLEM)
    names = list(dict.fromkeys(layer.name for layer in layers if role in (None, layer.role)))
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in names):
            leave(f"--layer {escape(glob)!r}: no layer of {escape(run)} is like it; {_near(glob, names)}", PROBLEM)


@contextmanager
def until_reader_leaves() -> Iterator[None]:
    """For what prints much: `rankd query … | head` ends without a word when the reader has seen enough."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _near(name: str, names: Sequence[str], certain: Sequence[str] = ()) -> str:
    near = list(dict.fromkeys([*certain, *difflib.get_close_matches(name, names, MAX_NEAR)]))[:MAX_NEAR]
    if near:
        return f"near it: {_listed(near)}"
    return f"there are {_listed(names)}" if names else "there is none"


def _listed(names: Iterable[str]) -> str:
    shown = [escape(name, 200) for name in names]
    return ", ".join(shown[:MAX_NEAR]) + (f" and {len(shown) - MAX_NEAR} more" if len(shown) > MAX_NEAR else "")
