"""The history as the running daemon reads it. Every method may take as long as the disk does: see rankd.reading."""

from __future__ import annotations

import glob
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from rankd.current import Current
from rankd.parts import whole_name
from rankd.records import Measurement
from rankd.store.reader import Reader
from rankd.store.schema import FILE_NAME
from rankd.streams import Streams, Topic
from rankd_client.wire import Event


class Archive:
    """Reads what the writer wrote, for one thread at a time. Where the file is gone, locked or damaged, a method raises
    StoreError; call `close` then, and the next one looks at what is there by then."""

    def __init__(self, data: Path) -> None:
        self.progress = 0
        """Grows while an answer is being found: a long one is not one that hangs."""
        self.looked_at = 0.0
        """Monotonic seconds: when it was last looked which file is there."""
        self._data = data
        self._reader: Reader | None = None
        self._identity: tuple[int, int] | None = None

    def load(self, streams: Streams, current: Current) -> None:
        """Bring both to where the last daemon was."""
        reader = self._open()
        runs, topics = reader.runs(), []
        for row in runs:
            for kind, newest in (("measurement", row.num_measurements), ("alert", row.num_alerts)):
                base = reader.base(streams.stream_id, kind, row.name) or 0
                topics.append(((kind, row.name), max(newest, base), base))
        firing = reader.firing()
        places = {run: reader.places("alert", run) for run, _, _ in firing}
        # All is read: what is loaded of a file that is damaged further on would be in the way of the next one.
        for topic in topics:
            streams.load(*topic)
        for row in runs:
            current.load_run(row.name, row.last_step, row.num_measurements, row.num_layers)
        for run, n, alert in firing:
            stream_id, seq = places[run](n)
            current.load_firing({**alert, "stream_id": stream_id, "seq": seq})

    def last_steps(self, run: str) -> dict[tuple[str, str], int]:
        """(layer, role) → step of what was recorded of it last. Rows of a layer's parts, which are of the same step,
        are no layers that are pushed, and would take the room of those."""
        steps = self._open().last_steps(run)
        return {key: step for key, step in steps.items() if steps.get((whole_name(key[0]), key[1])) != step}

    def recall(
        self, run: str, layer: str, role: str, *, whole: bool = False
    ) -> tuple[bytes | None, Iterable[Measurement]]:
        """What the layer's detectors remembered, and what was measured since; `whole`: nothing, and all there is."""
        reader = self._open()
        if whole:
            every = reader.measurements(run, layers=[glob.escape(layer)], role=role)
            return None, self._progressing(row for _, row in every)
        state, since = reader.judge(run, layer, role)
        return state, self._progressing(since)

    def _progressing(self, rows: Iterable[Measurement]) -> Iterator[Measurement]:
        for row in rows:
            self.progress += 1
            yield row

    def events(self, topic: Topic, stream_id: str, from_seq: int, max_events: int) -> list[Event]:
        """The events of a topic that are on disk, of this stream or a former one."""
        reader = self._open()
        base = reader.base(stream_id, *topic)
        if base is None:
            return []
        end = reader.end(stream_id, *topic)
        last = base + from_seq + max_events - 1 if end is None else min(end, base + from_seq + max_events - 1)
        rows = _rows(reader, topic, stream_id, base, base + from_seq, last)
        return [Event(topic[0], topic[1], stream_id, n - base, body) for n, body in rows]

    def streams(self) -> list[str]:
        """The ids of the streams on disk, oldest first."""
        return self._open().streams()[::-1]

    def span(self, topic: Topic, stream_id: str, ended_n: int | None = None) -> tuple[int, int | None] | None:
        """The oldest number of the topic that is still there, and the last one where the stream has ended: after event
        `ended_n`, where the history does not know of it yet. None for a stream that is not in the history."""
        reader = self._open()
        base = reader.base(stream_id, *topic)
        if base is None:
            return None
        if (end := reader.end(stream_id, *topic)) is None:
            end = ended_n
        return max(1, reader.first_n(*topic) - base), None if end is None else end - base

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    def _open(self) -> Reader:
        """A reader of the file that is there now: one that was moved aside or removed can still be read, but nobody
        writes to it any more."""
        self.progress += 1
        self.looked_at = time.monotonic()
        identity = self._identify()
        if self._reader is not None and identity != self._identity:
            self.close()
        if self._reader is None:
            self._reader, self._identity = Reader(self._data), identity
        return self._reader

    def _identify(self) -> tuple[int, int] | None:
        try:
            info = (self._data / FILE_NAME).stat()
        except OSError:
            return None
        return info.st_dev, info.st_ino


def _rows(
    reader: Reader, topic: Topic, stream_id: str, base: int, first: int, last: int
) -> Iterator[tuple[int, dict[str, Any]]]:
    kind, run = topic
    if kind == "measurement":
        rows = ((n, measurement.to_json()) for n, measurement in reader.measurements(run, from_n=first))
    else:
        rows = (
            (n, {**alert, "stream_id": stream_id, "seq": n - base}) for n, alert in reader.alerts(run, from_n=first)
        )
    for n, body in islice(rows, max(0, last - first + 1)):
        if n > last:
            return
        yield n, body
