"""Writing files that must be secret from their first moment, and whole or not there at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankd_client.keys import VERSION, KeyFileError


def make_private_directory(directory: Path) -> None:
    """`directory`, with mode 0700. Raises KeyFileError if it is there and others can look into it or it is theirs."""
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = directory.stat()
    except OSError as error:
        raise KeyFileError(f"{str(directory)!r} cannot be made: {error.strerror}") from error
    check_private_directory(directory, info)


def check_private_directory(directory: Path, info: os.stat_result) -> None:
    """Raises KeyFileError unless it is this user's or root's, and nobody else's to look into."""
    if info.st_uid not in (os.geteuid(), 0):
        raise KeyFileError(f"{str(directory)!r} belongs to user id {info.st_uid}; expected {os.geteuid()} or root")
    if (mode := info.st_mode & 0o7777) & 0o077:
        raise KeyFileError(f"{str(directory)!r} has mode {mode:04o}: others could look into it; expected 0700")


def write_file(path: Path, content: bytes, *, replace: bool = False, mode: int = 0o600) -> None:
    """A file that is secret by default, on the disk before this returns. Raises KeyFileError; without `replace`, also
    where there is one already (its __cause__ is the FileExistsError then)."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(fd)
            if replace:
                part.replace(path)
            else:  # a link, unlike a rename, takes nothing away that is there
                path.hardlink_to(part)
        finally:
            with contextlib.suppress(FileNotFoundError):
                part.unlink()
        sync_directory(path.parent)
    except OSError as error:
        raise KeyFileError(f"{str(path)!r} cannot be written: {error.strerror}") from error


def sync_directory(directory: Path) -> None:
    """What was made, renamed or removed in it survives a crash."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def json_bytes(kind: str, content: Mapping[str, Any]) -> bytes:
    """A key file of this kind."""
    return (json.dumps({"kind": kind, "version": VERSION, **content}, indent=2) + "\n").encode()
