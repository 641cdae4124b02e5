"""The byte budget of a spool's directory, which all processes that write there share without talking to one another.

Each looks at the sizes of all files before it writes; and since that takes a while where there are many, it may then
write a small part of what is free before it looks again. Together they exceed the budget by one snapshot each at most,
where they look at the very same moment.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from rankd_client.spool.format import SUFFIX

LEASE_SHARE = 16
"""All sessions together write at most this part of what was free before they look again."""

LEASE_SECONDS = 1.0
"""What others have written since is not known: so long at most."""

SHIPPED = "shipped"
"""Name of the empty file that `rankd sync` puts into a session of which nothing is left to ship."""


@dataclass(frozen=True, slots=True)
class Kept:
    """One NN.spool file."""

    thinning_class: int
    num_bytes: int
    path: str


class Room:
    """Of one writing process. Everything raises OSError as the disk does."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root
        self.max_bytes = max_bytes
        self._lease_bytes = 0
        self._lease_until = 0.0

    def take(self, num_bytes: int) -> bool:
        """Room for `num_bytes` more, made by thinning out if need be; False where that is not enough."""
        now = time.monotonic()
        if num_bytes <= self._lease_bytes and now < self._lease_until:
            self._lease_bytes -= num_bytes
            return True
        self._lease_bytes = 0
        if num_bytes > self.max_bytes:
            return False
        free_bytes, num_sessions = self._look()
        if free_bytes < num_bytes:
            with self._locked():  # or two that find it full would both thin it out
                free_bytes, num_sessions = self._make_room(num_bytes)
        if free_bytes < num_bytes:
            return False
        self._lease_bytes = max(0, free_bytes // (LEASE_SHARE * max(1, num_sessions)) - num_bytes)
        self._lease_until = now + LEASE_SECONDS
        return True

    def _look(self) -> tuple[int, int]:
        sessions = [list(files_of(session)) for session in sessions_of(self.root)]
        return self.max_bytes - sum(kept.num_bytes for files in sessions for kept in files), len(sessions)

    def _make_room(self, num_bytes: int) -> tuple[int, int]:
        """What was shipped goes first, then the finest class of all that is there, whoever wrote it; class 0 stays."""
        free_bytes, num_sessions = self._look()
        for session in sessions_of(self.root):
            if free_bytes >= num_bytes:
                break
            if os.path.exists(f"{session}/{SHIPPED}"):  # noqa: PTH110  # many paths, each once
                free_bytes += sum(kept.num_bytes for kept in files_of(session))
                shutil.rmtree(session, ignore_errors=True)
        if free_bytes >= num_bytes:
            return free_bytes, num_sessions
        files = [kept for session in sessions_of(self.root) for kept in files_of(session) if kept.thinning_class]
        for kept in sorted(files, key=lambda kept: (-kept.thinning_class, -kept.num_bytes)):
            if free_bytes >= num_bytes:
                break
            os.unlink(kept.path)  # noqa: PTH108  # likewise
            free_bytes += kept.num_bytes
        return free_bytes, num_sessions

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        lock = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            with contextlib.suppress(OSError):  # a disk without locks: they may thin out more than they have to
                fcntl.lockf(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def sessions_of(root: Path) -> list[str]:
    """Paths of the session directories in a spool, in the order of their names."""
    with os.scandir(root) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def files_of(session: str) -> Iterator[Kept]:
    """Its NN.spool files; nothing of a session that is gone."""
    with contextlib.suppress(FileNotFoundError), os.scandir(session) as entries:
        for entry in entries:
            stem = entry.name.removesuffix(SUFFIX)
            if stem != entry.name and stem.isascii() and stem.isdigit():
                with contextlib.suppress(FileNotFoundError):
                    yield Kept(int(stem), entry.stat(follow_symlinks=False).st_size, entry.path)
