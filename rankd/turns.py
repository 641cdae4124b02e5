"""Who is served next where many ask at once: one of each in turn, however many a single one has brought. Pure."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Generic, TypeVar

T = TypeVar("T")


class Turns(Generic[T]):
    """Lines of things that wait, one a user. Bounded in number and bytes of all: what is too much is taken from the end
    of the longest line, so that no line grows at another's expense."""

    def __init__(self, max_waiting: int, max_bytes: int) -> None:
        self.max_waiting = max_waiting
        self.max_bytes = max_bytes
        self.num_bytes = 0
        self.num_waiting = 0
        self._lines: OrderedDict[str, deque[tuple[T, int]]] = OrderedDict()
        self._line_bytes: dict[str, int] = {}

    def put(self, user: str, item: T, num_bytes: int) -> list[T]:
        """Returns what has to be sent away to make room for it, itself perhaps."""
        self._lines.setdefault(user, deque()).append((item, num_bytes))
        self._count(user, 1, num_bytes)
        sent_away = []
        while self.num_waiting > self.max_waiting:
            sent_away.append(self._take(max(self._lines, key=lambda name: len(self._lines[name])), -1))
        while self.num_bytes > self.max_bytes:
            sent_away.append(self._take(max(self._lines, key=self._line_bytes.__getitem__), -1))
        return sent_away

    def next(self) -> T | None:
        """The oldest of the user whose turn it is; his next turn comes after everybody else's."""
        if not self._lines:
            return None
        user = next(iter(self._lines))
        self._lines.move_to_end(user)
        return self._take(user, 0)

    def _take(self, user: str, place: int) -> T:
        line = self._lines[user]
        item, num_bytes = line[place]
        del line[place]
        self._count(user, -1, -num_bytes)
        if not line:
            del self._lines[user], self._line_bytes[user]
        return item

    def _count(self, user: str, number: int, num_bytes: int) -> None:
        self.num_waiting += number
        self.num_bytes += num_bytes
        self._line_bytes[user] = self._line_bytes.get(user, 0) + num_bytes
