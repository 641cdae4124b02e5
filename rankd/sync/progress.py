"""What of a session was dealt with: a file `done` in it, which grows by a number with each answer of the daemon.

What had to be left out is in it too, with a mark: once later steps of its layer have gone, nothing else would tell it
from what was shipped.

A later step of a layer goes only when this file, on the disk, says that the one before it was dealt with. So whatever
is killed, and whenever: what goes again is the newest step of its layer that went at all, which the daemon knows.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from rankd_client.spool.format import SpoolError

NAME = "done"
DAMAGED, INCOMPLETE = 1 << 63, 1 << 62
"""Marks of what was left out, in an entry's upper two bits: a part of the snapshot is damaged, or not there."""

MAX_NUMBER = INCOMPLETE - 1
_ENTRY = struct.Struct("<QI")


class Progress:
    """Of one session; `numbers` are those of the records that were dealt with when it was opened. `left_out`: of those
    that were not, and are known for it, the mark."""

    def __init__(self, session: Path) -> None:
        """Raises SpoolError where the file is damaged, or cannot be written."""
        self.path = session / NAME
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            self._fd = os.open(self.path, flags, 0o600)
        except OSError as error:
            raise SpoolError(self.path, f"cannot be written: {error.strerror}") from None
        try:
            self.numbers, self.left_out, self._at = self._load()
        except BaseException:
            self.close()
            raise
        self._is_flushed = True

    def mark(self, numbers: list[int], left_out: int = 0) -> None:
        """Add `numbers`, of at most MAX_NUMBER each, as dealt with or as DAMAGED or INCOMPLETE; they are on the disk
        once `flush` has returned. Raises OSError."""
        if left_out:
            numbers = [number for number in numbers if self.left_out.get(number) != left_out]
            self.left_out.update(dict.fromkeys(numbers, left_out))
        entries = b"".join(_entry(number | left_out) for number in numbers)
        while entries:
            self._is_flushed = False
            written = os.pwrite(self._fd, entries, self._at)
            self._at, entries = self._at + written, entries[written:]

    def flush(self) -> None:
        """Raises OSError."""
        if not self._is_flushed:
            os.fdatasync(self._fd)
            self._is_flushed = True

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _load(self) -> tuple[set[int], dict[int, int], int]:
        """A tail that was cut off, or never came to the disk, counts for nothing."""
        numbers: set[int] = set()
        left_out: dict[int, int] = {}
        with os.fdopen(os.dup(self._fd), "rb") as file:
            at, end = 0, None
            while entry := file.read(_ENTRY.size):
                number = _ENTRY.unpack(entry)[0] if len(entry) == _ENTRY.size else None
                if number is None or entry != _entry(number):
                    end = at if end is None else end
                elif end is not None:
                    raise SpoolError(self.path, "damaged: what was shipped cannot be told; remove it to ship all", end)
                elif number > MAX_NUMBER:
                    left_out[number & MAX_NUMBER] = number & ~MAX_NUMBER
                else:
                    numbers.add(number)
                    left_out.pop(number, None)  # it was whole again
                at += len(entry)
        return numbers, left_out, at if end is None else end


def _entry(number: int) -> bytes:
    return _ENTRY.pack(number, zlib.crc32(number.to_bytes(8, "little")))
