"""What may go wrong with the history."""

from __future__ import annotations

from typing import Literal

ErrorKind = Literal["full", "busy", "damaged", "io", "slow", "missing", "version"]
"""full: no room on the disk. busy: locked by another process. damaged: not a history, or one with broken pages. io: the
disk or the permissions. slow: a commit took too long. missing: there is no history. version: one of another version."""


class StoreError(RuntimeError):
    """The history cannot be read or written now; `kind` says why."""

    def __init__(self, kind: ErrorKind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
