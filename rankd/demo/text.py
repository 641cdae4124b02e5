"""The text the demo trains on: Python's own standard library, so that nothing is downloaded or shipped."""

from __future__ import annotations

import sysconfig
from collections.abc import Sequence
from pathlib import Path

import torch

MODULES = (
    "argparse.py",
    "ast.py",
    "bdb.py",
    "codecs.py",
    "copy.py",
    "csv.py",
    "dataclasses.py",
    "difflib.py",
    "enum.py",
    "fractions.py",
    "functools.py",
    "heapq.py",
    "inspect.py",
    "locale.py",
    "mailbox.py",
    "optparse.py",
    "pdb.py",
    "pickle.py",
    "random.py",
    "shutil.py",
    "smtplib.py",
    "socket.py",
    "statistics.py",
    "subprocess.py",
    "tarfile.py",
    "tempfile.py",
    "textwrap.py",
    "threading.py",
    "traceback.py",
    "turtle.py",
    "typing.py",
    "unittest/mock.py",
    "urllib/request.py",
    "zipfile.py",
)
"""Pure-Python modules, long and rich in prose, nearly all of them there in every Python since 3.8."""

VOCABULARY = 96
"""Printable ASCII and the line feed."""

MIN_CHARACTERS = 200_000
"""Less than this and the model would learn the text by heart within the demo's few thousand steps."""


def read_text(modules: Sequence[str] = MODULES, directory: Path | None = None) -> str:
    """The sources of `modules`, joined in their order; the same on every machine with the same Python.

    `directory` is the standard library's by default. A module that this Python lacks is left out (3.13 made a package
    of `zipfile.py`, for one). Raises FileNotFoundError when fewer than MIN_CHARACTERS are left, as in a Python that
    ships compiled modules only.
    """
    directory = directory or Path(sysconfig.get_path("stdlib"))
    paths = [directory / module for module in modules]
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths if path.is_file())
    if len(text) < MIN_CHARACTERS:
        raise FileNotFoundError(
            f"the demo trains on the sources of Python's standard library: found {len(text)} characters of them "
            f"in {directory}, expected at least {MIN_CHARACTERS}"
        )
    return text


def encode(text: str) -> torch.Tensor:
    """One int64 in [0, VOCABULARY) a character, shape (len(text),); a line feed where it is not printable ASCII."""
    codes = torch.tensor([ord(character) for character in text], dtype=torch.int64)
    return torch.where((codes >= 32) & (codes < 127), codes - 32, VOCABULARY - 1)
