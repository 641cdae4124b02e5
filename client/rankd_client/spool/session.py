"""The files that one training process writes into a spool. Owned by one thread."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import time
from collections.abc import Callable
from pathlib import Path

from rankd_client.spool.format import (
    MAX_CLASS,
    PREAMBLE_BYTES,
    SUFFIX,
    Origin,
    pack_origin,
    pack_preamble,
    pack_record,
)
from rankd_client.spool.room import Room
from rankd_client.spool.thinning import thinning_class
from rankd_client.wire import Hello
from rankd_client.wire.messages import Payload

WRITE_BYTES = 8 << 20
"""Of one write: between two, a close() that runs out of time is noticed."""

Key = tuple[str, ...]
"""Of what has steps of its own: layer and role, and a third word for numbers."""


class _File:
    """One NN.spool that is written; `num_bytes` of it are whole records."""

    def __init__(self, path: Path, preamble: bytes) -> None:
        self.fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self.num_bytes = 0
        self.num_snapshots = 0
        try:
            self.append(preamble)
        except BaseException:
            self.close()
            raise

    @property
    def removed(self) -> bool:
        return _is_removed(self.fd)

    def append(self, *parts: Payload, on_time: Callable[[], None] = lambda: None) -> None:
        """All of it or, where that fails, nothing."""
        if os.fstat(self.fd).st_size != self.num_bytes:
            os.ftruncate(self.fd, self.num_bytes)  # what an earlier failure left, and could not take back
        at = self.num_bytes
        try:
            for part in parts:
                view = memoryview(part)
                while len(view):
                    on_time()
                    written = os.pwrite(self.fd, view[:WRITE_BYTES], at)
                    view, at = view[written:], at + written
        except BaseException:
            with contextlib.suppress(OSError):
                os.ftruncate(self.fd, self.num_bytes)
            raise
        self.num_bytes = at

    def close(self) -> None:
        with contextlib.suppress(OSError):
            os.close(self.fd)


class Session:
    """A directory of its own in the spool at `root`, made at the first snapshot: no other process writes there, and
    whether this one lives can be told by its lock on `head`."""

    def __init__(self, root: Path, max_bytes: int, hello: Hello) -> None:
        self.path = root / hello.session.hex()
        self.num_kept = self.kept_bytes = 0
        """In the files now."""
        self.num_thinned = 0
        self.finest = MAX_CLASS
        """Classes above are not kept any more."""
        self._hello = hello
        self._room = Room(root, max_bytes)
        self._head = -1
        self._files: dict[int, _File] = {}
        self._last: dict[Key, int] = {}
        self._next_number = 0

    def keep(
        self,
        key: Key,
        step: int,
        header: bytes,
        body: Payload,
        on_time: Callable[[], None],
        num_returns: int | None = None,
    ) -> bool:
        """Write a snapshot, or thin it out; False where there is no room. `on_time` raises when it is too late.
        `num_returns`: how often its layer had gone back, where that is known. Raises OSError as the disk does, and
        keeps nothing of it then."""
        thinning = thinning_class(self._last.get(key), step)
        self._last[key] = step
        number, self._next_number = self._next_number, self._next_number + 1
        self._begin()
        self._notice_removed()
        if thinning > self.finest:
            self.num_thinned += 1
            return True
        record = pack_record(number, header, body, num_returns)
        if not self._room.take(len(record) + len(body) + PREAMBLE_BYTES):
            return False
        self._notice_removed()  # perhaps by ourselves, just now
        if thinning > self.finest:
            self.num_thinned += 1
            return True
        file = self._files.get(thinning)
        if file is None:
            path, preamble = self.path / f"{thinning:02}{SUFFIX}", pack_preamble(self._hello.session, thinning)
            file = self._files[thinning] = _File(path, preamble)
        file.append(record, body, on_time=on_time)
        file.num_snapshots += 1
        self.num_kept += 1
        self.kept_bytes += len(record) + len(body)
        return True

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        self._files.clear()
        if self._head >= 0:
            os.close(self._head)
            self._head = -1

    def _begin(self) -> None:
        """Make the directory, where it is not there: not yet, or not any more."""
        if self._head >= 0:
            if not _is_removed(self._head):
                return
            self._forget()
        own_directory(self._room.root)
        new = self.path.with_suffix(".new")
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(0o700)
        head = os.open(new / "head", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            content = pack_origin(Origin(self._hello, time.time()))
            if os.write(head, content) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            with contextlib.suppress(OSError):  # a disk without locks: `rankd sync` goes by the time of the last write
                fcntl.lockf(head, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.rename(self.path)
        except BaseException:
            os.close(head)
            raise
        self._head = head

    def _forget(self) -> None:
        """Somebody took the whole directory away; what comes now is kept anew."""
        self.close()
        self.num_kept = self.kept_bytes = 0
        self.finest = MAX_CLASS
        self._last.clear()

    def _notice_removed(self) -> None:
        """Files that somebody thinned out."""
        for thinning, file in list(self._files.items()):
            if file.removed:
                file.close()
                del self._files[thinning]
                self.finest = min(self.finest, thinning - 1)
                self.num_thinned += file.num_snapshots
                self.num_kept -= file.num_snapshots
                self.kept_bytes -= file.num_bytes - PREAMBLE_BYTES


def _is_removed(descriptor: int) -> bool:
    """Whether an open file has no name any more."""
    try:
        return not os.fstat(descriptor).st_nlink
    except OSError as error:
        if error.errno == errno.ESTALE:  # how a network's file system says so
            return True
        raise


def own_directory(root: Path) -> None:
    """Make `root`, if need be. Raises PermissionError where it is not this user's alone to write to: whoever else can
    would take the weights, or what is shipped."""
    root.mkdir(0o700, parents=True, exist_ok=True)
    info = root.stat()
    if info.st_uid != os.geteuid() or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise PermissionError(errno.EPERM, "belongs to somebody else, or others can write to it; expected mode 0700")
