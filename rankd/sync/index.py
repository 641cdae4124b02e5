"""In which order the snapshots of a job go: each layer by itself, from step to step, the parts of a step together."""

from __future__ import annotations

import os
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from heapq import merge
from itertools import groupby
from pathlib import Path

from rankd.sync.found import Life
from rankd.sync.progress import DAMAGED, MAX_NUMBER, Progress
from rankd_client.spool.format import SUFFIX, Log, Message, Record, SpoolError
from rankd_client.spool.room import files_of
from rankd_client.wire import DTYPES, LOCAL_VERSION, Reported

MAX_OPEN = 64
"""Files open at once, of what may be thousands."""

Key = tuple[str, str]
"""(layer, role)"""

Order = tuple[int, int, int]
"""(how often the layer had gone back, step, 0 of a snapshot or 1 of numbers that the trainer computed)."""

FIELDS = 6
"""Of a record: its order; its number, its file's class and its offset there."""


@dataclass(frozen=True, slots=True)
class Place:
    """Of a record: its session, by its place in the life, its number there, its file's class and its offset."""

    session: int
    number: int
    thinning_class: int
    at: int


@dataclass(slots=True)
class Lines:
    """The records of one session that were not dealt with, by key."""

    places: dict[Key, array[int]] = field(default_factory=dict)
    """FIELDS numbers each."""
    num_done: int = 0
    num_left: int = 0
    num_incomplete: int = 0
    """Left out before, which cannot go any more."""
    faults: list[SpoolError] = field(default_factory=list)
    counted: dict[Key, tuple[int, int]] = field(default_factory=dict)
    """How often a layer went back, snapshots and numbers, where the trainer did not write it: as far as can be told
    from what is there."""


class Index:
    """Of one life. Keeps 48 bytes a record."""

    def __init__(self, life: Life) -> None:
        """Reads the heads of all records. Raises SpoolError where what was shipped cannot be told."""
        self.life = life
        self.version = 1
        """Of the protocol, the first that carries all of it."""
        self.progress: list[Progress] = []
        self.logs = Logs(life)
        self.lines: list[Lines] = []
        try:
            for session, found in enumerate(life):
                self.progress.append(Progress(found.path))
                self.lines.append(self._read(session))
        except BaseException:
            self.close()
            raise

    def keys(self) -> set[Key]:
        return {key for lines in self.lines for key in lines.places}

    def steps(self, key: Key) -> Iterator[tuple[Order, list[Place]]]:
        """The steps of a layer in their order, each with all that the processes have of it. Where it went back and
        one process saw that while another did not, which parts belong together is not known: each is by itself."""
        lines = [self._orders(session, key) for session in range(len(self.lines))]
        is_alike = len({lines.counted[key] for lines in self.lines if key in lines.counted}) < 2
        ordered = merge(*lines, key=lambda line: line[0])
        for (order, _), places in groupby(ordered, key=lambda line: (line[0], -1 if is_alike else line[1].session)):
            yield order, [place for _, place in places]

    def may_come(self, key: Key, order: Order, places: list[Place]) -> bool:
        """Whether a process that lives may have yet to write a part of this step, of which these are there."""
        if not any(found.live for found in self.life):
            return False
        if len(self.life) < self.life[0].origin.hello.world_size:
            return True
        waiting = {session for session, found in enumerate(self.life) if found.live}
        waiting -= {place.session for place in places}
        return any(self._last(session, key) <= order for session in waiting)

    def close(self) -> None:
        for progress in self.progress:
            progress.close()
        self.logs.close()

    def _orders(self, session: int, key: Key) -> Iterator[tuple[Order, Place]]:
        line = self.lines[session].places.get(key, array("Q"))
        for at in range(0, len(line), FIELDS):
            times, step, kind, number, thinning_class, offset = line[at : at + FIELDS]
            yield (times, step, kind), Place(session, number, thinning_class, offset)

    def _last(self, session: int, key: Key) -> Order:
        line = self.lines[session].places.get(key)
        return (line[-FIELDS], line[1 - FIELDS], line[2 - FIELDS]) if line else (-1, -1, -1)

    def _read(self, session: int) -> Lines:
        lines, rows = Lines(), _Rows()
        for path in self._files(session):
            try:
                self._read_file(session, path, rows, lines.faults)
            except SpoolError as error:
                if path.exists():  # else it was thinned out just now
                    lines.faults.append(error)
        done = self.progress[session].numbers
        for key, line in rows.ordered(lines.counted):
            # Not only what was dealt with itself: nothing goes that is older than what went.
            last = max((place for place, row in enumerate(line) if row[3] in done), default=-1)
            lines.num_done += last + 1 - self._left_out(session, line[: last + 1], lines)
            lines.num_left += len(line) - last - 1
            if last + 1 < len(line):
                lines.places[key] = array("Q", [number for row in line[last + 1 :] for number in row])
        return lines

    def _left_out(self, session: int, line: Sequence[tuple[int, ...]], lines: Lines) -> int:
        """How many of these went neither now nor before; what became of them is told again."""
        marks = self.progress[session].left_out
        found = [(marks[row[3]], row) for row in line if row[3] in marks]
        for mark, (*_, thinning_class, at) in found:
            if mark == DAMAGED:
                path = self.logs.path(session, thinning_class)
                why = "an earlier sync found it damaged, or a part that belongs to it"
                lines.faults.append(SpoolError(path, why, at))
            else:
                lines.num_incomplete += 1
        return len(found)

    def _files(self, session: int) -> list[Path]:
        """The one that was written to last comes first: see _read_file."""
        files = []
        for kept in files_of(str(self.life[session].path)):
            with suppress(FileNotFoundError):
                files.append((Path(kept.path).stat().st_mtime_ns, kept.path))
        return [Path(path) for _, path in sorted(files, reverse=True)]

    def _read_file(self, session: int, path: Path, rows: _Rows, faults: list[SpoolError]) -> None:
        """Where the trainer lives, records that it writes after the first file was read may be in one file and missing
        in another that was read before: nothing is taken that is newer than the last one in the first."""
        thinning_class = int(path.stem)
        log = self.logs.open(session, thinning_class)
        newest = -1
        for record in log.records():
            newest = record.number
            if rows.newest is not None and record.number > rows.newest:
                break
            try:
                if record.number > MAX_NUMBER:
                    raise SpoolError(path, f"number {record.number}: expected less than 2^62", record.at)
                message = log.message(record)
            except SpoolError as error:
                faults.append(error)
                continue
            self._need(message)
            rows.add(message, record, thinning_class)
        if rows.newest is None and self.life[session].live:
            rows.newest = newest

    def _need(self, message: Message) -> None:
        needed = LOCAL_VERSION if isinstance(message, Reported) else DTYPES[message.dtype].version
        self.version = max(self.version, needed)


class _Rows:
    """What is read of a session. `newest`: the number of the last record to take, where there is a bound."""

    def __init__(self) -> None:
        self.newest: int | None = None
        self._by_key: dict[Key, list[tuple[int, int, int, int, int, int | None]]] = {}

    def add(self, message: Message, record: Record, thinning_class: int) -> None:
        kind = int(isinstance(message, Reported))
        row = (record.number, message.step, kind, thinning_class, record.at, record.num_returns)
        self._by_key.setdefault((message.layer, message.role), []).append(row)

    def ordered(
        self, counted: dict[Key, tuple[int, int]]
    ) -> Iterator[tuple[Key, list[tuple[int, int, int, int, int, int]]]]:
        """Each layer's as they go. How often it had gone back, the trainer wrote. Where it did not, that is told by the
        order in which they were written, of snapshots and of numbers for themselves (one may have overtaken the other
        on the way to the disk), and `counted` says so."""
        for key, found in self._by_key.items():
            line, times, previous = [], [0, 0], [-1, -1]
            for number, step, kind, thinning_class, at, num_returns in sorted(found):
                times[kind] = times[kind] + (step <= previous[kind]) if num_returns is None else num_returns
                previous[kind] = step
                line.append((times[kind], step, kind, number, thinning_class, at))
            if any(row[-1] is None for row in found):
                counted[key] = (times[0], times[1])
            yield key, sorted(line)


class Logs:
    """The files of a life's sessions, of which MAX_OPEN are open."""

    def __init__(self, life: Life) -> None:
        self._life = life
        self._open: OrderedDict[tuple[int, int], Log] = OrderedDict()

    def open(self, session: int, thinning_class: int) -> Log:
        """Raises SpoolError."""
        place = (session, thinning_class)
        if place not in self._open:
            found = self._life[session]
            if len(self._open) >= MAX_OPEN:
                self._open.popitem(last=False)[1].close()
            self._open[place] = Log(self.path(session, thinning_class), found.origin.hello.session)
        self._open.move_to_end(place)
        return self._open[place]

    def path(self, session: int, thinning_class: int) -> Path:
        return self._life[session].path / f"{thinning_class:02}{SUFFIX}"

    def record(self, place: Place) -> tuple[Log, Record]:
        """Raises SpoolError."""
        log = self.open(place.session, place.thinning_class)
        record = log.record(place.at)
        if record is None or record.number != place.number or record.end > os.fstat(log.fd).st_size:
            raise SpoolError(log.path, "it has changed", place.at)
        return log, record

    def close(self) -> None:
        for log in self._open.values():
            log.close()
        self._open.clear()
