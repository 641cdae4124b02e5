"""What can be wrong with a history: with the disk (StoreError, passes or not), or with what the user asked for."""

from __future__ import annotations

import errno
import sqlite3
from typing import Literal

from rankd.config import ConfigError

Kind = Literal["full", "busy", "damaged", "io", "slow", "gone", "missing", "version"]

_KINDS: dict[int, Kind] = {
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_PROTOCOL: "busy",
    sqlite3.SQLITE_CORRUPT: "damaged",
    sqlite3.SQLITE_NOTADB: "damaged",
}
_TEXTS: dict[Kind, str] = {
    "full": "the disk is full",
    "busy": "another program has locked the file",
    "damaged": "the file is damaged",
    "io": "it cannot be read or written",
}


FAILURES = (sqlite3.Error, OSError, UnicodeDecodeError)
"""What the disk can do to a statement: a message of SQLite that quotes a damaged schema may be no UTF-8."""

_DAMAGED = ("Could not decode to UTF-8", "no such table", "no such column")
"""How errors begin that have no code of their own and mean that a byte is another than the one that was written: our
statements fit the tables of every file of our version."""


class StoreError(RuntimeError):
    """The history cannot be read or written now. `kind`: "full" (no room on the disk), "busy" (locked by another),
    "damaged" (no database any more), "io" (anything else, a read-only disk among it), "slow" (it takes too long),
    "gone" (removed or replaced while it was written); for who reads it, "missing" (there is none) and "version" (it is
    one of another version)."""

    def __init__(self, kind: Kind, text: str, begun_anew: bool = False) -> None:
        """`begun_anew`: what was recorded before is not in the history any more."""
        super().__init__(text)
        self.looked_at = 0.0
        """Monotonic seconds: when the daemon's reader looked which file is there."""
        self.kind: Kind = kind
        self.begun_anew = begun_anew

    @classmethod
    def of(cls, error: Exception) -> StoreError:
        """What one of FAILURES amounts to; what is a StoreError already is given back."""
        if isinstance(error, StoreError):
            return error
        if isinstance(error, OSError):
            kind: Kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "io"
        elif isinstance(error, UnicodeDecodeError):
            kind = "damaged"
        else:
            # The low byte is the primary code; absent where the error is the sqlite3 module's own.
            kind = _KINDS.get(getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF, "io")
            kind = "damaged" if str(error).startswith(_DAMAGED) else kind
        return cls(kind, f"{_TEXTS[kind]} ({error})")


class StoreInUse(ConfigError):
    """Another daemon writes this history."""


class PlaceError(ConfigError):
    """A directory that cannot hold a history."""
