"""What of the items given out was dealt with, written down as it goes."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from typing import Any

from rankd_client.positions import Position, PositionsFile
from rankd_client.stream import Item, StreamTracker
from rankd_client.stream.severity import Begun

logger = logging.getLogger("rankd_client")


class Ledger:
    """Keeps the position of a subscriber: where its tracker is, less what was not dealt with yet."""

    def __init__(self, path: str | os.PathLike[str], wanted: Mapping[str, Any], tracker: StreamTracker) -> None:
        self._file = PositionsFile(path, wanted)
        self._tracker = tracker
        self._some_hidden = "severity" in wanted
        self._position = self._file.position or Position()
        self._saved = self._file.position is not None
        self._told = False
        if self._file.position is not None:
            begun = Begun(self._position.begun)  # the tracker's goes ahead: an end given out may have to come again
            tracker.restore(self._position.places, self._position.complete, set(self._position.owed), begun)

    def refresh(self, outstanding: Iterable[Item]) -> None:
        """Take over the tracker's places, which moved on by what was filtered out or lost too. `outstanding`: the items
        that nobody dealt with yet, in their order."""
        if not self._tracker.followed or not self._tracker.stream_id:
            return  # where to go on is not known yet, or as in the file
        places, begun = self._tracker.places(), self._position.begun
        position = Position(places, set(self._tracker.owed), self._tracker.complete, begun)
        for item in reversed(tuple(outstanding)):
            if (mark := item.mark) is None:
                continue
            if not mark.in_turn:
                position.owed.add(mark)
                continue
            key = (mark.kind, mark.run)
            for stream_id in reversed(tuple(position.places)):  # later streams come when this one was read to its end
                if stream_id == mark.stream_id:
                    position.places[stream_id][key] = mark.seq - 1
                    break
                if mark.stream_id not in self._tracker.lost_streams:
                    position.places[stream_id].pop(key, None)
        if not self._saved or position != self._position:
            self._position = position
            self._save()

    def settle(self, item: Item, write: bool) -> None:
        """This item, the oldest that was outstanding, was dealt with. Not `write`: it need not be on disk at once."""
        mark = item.mark
        if mark is None:
            return
        if mark.in_turn:
            self._position.places.setdefault(mark.stream_id, {})[mark.kind, mark.run] = mark.seq
        else:
            self._position.owed.discard(mark)
        if self._some_hidden and mark.kind == "alert":
            self._position.begun.note(item)
        self._saved = False
        if write:
            self._save()

    def _save(self) -> None:
        try:
            self._file.save(self._position)
            self._saved, self._told = True, False
        except OSError as error:  # items matter more than where we are in them; they come again after a restart
            self._saved = False
            if not self._told:
                self._told = True
                logger.warning("cannot write %s: %s; what comes now may come again", self._file.path, error.strerror)

    def close(self) -> None:
        self._file.close()
