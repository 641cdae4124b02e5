"""The directory of a private Ray. Ray makes all that it creates open to everybody, its sockets and ports among it; so
this user alone may enter what that lies in."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from pathlib import Path

PREFIX = "rankd-ray-"


class Home:
    """One that is new, of mode 0700, and locked while this process is there. `path`: within it, for Ray."""

    def __init__(self) -> None:
        """Those of daemons that are not there any more are removed. OSError where none can be had."""
        _remove_stale()
        self._top = Path(tempfile.mkdtemp(prefix=PREFIX))
        self._lock = _lock(self._top)
        self.path = self._top / "r"  # short: a socket's path has 107 bytes
        self.path.mkdir(mode=0o700)  # once it is locked: without it, `_remove_stale` leaves it alone

    def remove(self) -> None:
        """For when nobody writes there any more."""
        shutil.rmtree(self._top, ignore_errors=True)
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _remove_stale() -> None:
    for top in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if top.lstat().st_uid == os.getuid() and (top / "r").is_dir() and (lock := _lock(top)) is not None:
                shutil.rmtree(top, ignore_errors=True)
                os.close(lock)


def _lock(directory: Path) -> int | None:
    """None where another process has it. A process id would not do: containers may share the directory."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
