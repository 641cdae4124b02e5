"""What goes with a push: which of the watched tensors, and which of those this process is to send."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rankd_client.lasttimes import LastTimes
from rankd_client.plan import choose, choose_alike
from rankd_client.watch import Watched

REPLICA = "replica"
"""Another process pushes the same."""

LEFT_TO_FIRST = "left to process 0"
"""Which pushes the same, unless this process is another stage of a pipeline: nothing here tells."""

TOO_LARGE = "larger than max_push_bytes"
"""Never to be pushed."""

MAX_OTHERS = 1024
"""Layers of other models of which it is remembered when they went, at least: a client may push several in turn, but
names that are new for ever must not pile up."""


class Turns:
    """Layers take turns where a push has no room for all of them. It remembers when each last went, and of the model
    what the cheap ways through a push need."""

    def __init__(self, max_push_bytes: int, max_memory_bytes: int) -> None:
        self.names: tuple[str, ...] | None = None
        """Layers that are watched; None until a model was looked at."""
        self.num_masters = 0
        self.whole_bytes = self.least_bytes = 0
        """Of a push that takes all that fits; and of the least one, with the layer whose turn it is."""
        self._max_push_bytes = max_push_bytes
        self._max_bytes = min(max_push_bytes, max_memory_bytes)
        self._roomy_bytes = max_memory_bytes // 2
        """A push of no more than these always finds memory."""
        self._total_bytes = self._fitting_bytes = 0
        self._num_pushes = 0
        self._last_push = LastTimes()
        """Number of the push with which a layer last went: its staleness."""

    def all_fit(self, max_bytes: int) -> bool:
        """Whether a push of what is remembered has room for all of it."""
        return self._total_bytes <= min(max_bytes, self._roomy_bytes)

    def choose(
        self,
        watched: list[Watched],
        skipped: dict[str, str],
        max_bytes: int,
        *,
        turn: int | None,
        again: bool,
        refused: Mapping[str, str],
    ) -> list[Watched]:
        """What goes now, in its order; the others get their reason in `skipped`. `turn` is the number of the push in
        jobs of several processes, where nothing else may count, and None in others; `again`: `watched` is what was
        remembered last."""
        if again and turn is None and self.all_fit(max_bytes):
            return watched  # nothing has to wait its turn
        if turn is None:
            names = choose([item for item in watched if item.name not in refused], max_bytes, self._last_push.table())
        else:
            names = choose_alike(watched, max_bytes, turn)
        by_name = {item.name: item for item in watched}
        for name in by_name.keys() - set(names):
            num_bytes = by_name[name].num_bytes if turn is None else by_name[name].turn_bytes
            skipped[name] = TOO_LARGE if num_bytes > self._max_push_bytes else "budget"
        return [by_name[name] for name in names]

    def pushed(self, names: Sequence[str]) -> None:
        """These layers were copied."""
        self._num_pushes += 1
        self._last_push.went(names, self._num_pushes)

    def remember(self, watched: list[Watched], beside: Sequence[Watched], *, again: bool, budget: bool) -> bool:
        """What was found, of the model and beside it. `budget`: `least_bytes` will be asked for. Whether the layers
        have other names than before."""
        max_bytes = self._max_bytes
        is_new = False
        if not again or self.names is None:
            names = tuple(item.name for item in watched)
            is_new = names != self.names
            self.names = names
            self._forget_others()
            self._total_bytes = sum(item.num_bytes for item in watched)
            self._fitting_bytes = sum(item.num_bytes for item in watched if item.num_bytes <= max_bytes)
            self.num_masters = sum(item.is_master for item in watched)
        beside_bytes = sum(item.num_bytes for item in beside if item.num_bytes <= max_bytes)
        self.whole_bytes = min(self._fitting_bytes + beside_bytes, max_bytes)
        if budget:
            fitting = [item for item in watched if item.num_bytes <= max_bytes]
            first_bytes = beside_bytes + sum(item.num_bytes for item in fitting if item.priority)
            others = [item for item in fitting if not item.priority]
            last_push = self._last_push.table()
            turn = min(others, key=lambda item: last_push.get(item.name, -1), default=None)
            self.least_bytes = min(first_bytes + (turn.num_bytes if turn else 0), self.whole_bytes)
        return is_new

    def _forget_others(self) -> None:
        """But for those that went last, where there are many."""
        last_push = self._last_push.table()
        own = self.names or ()
        others = last_push.keys() - set(own)
        num_kept = max(MAX_OTHERS, len(own))
        if len(others) > 2 * num_kept:  # seldom, as it takes a while
            self._last_push.keep([*own, *sorted(others, key=last_push.__getitem__)[-num_kept:]])


def mine(
    chosen: list[Watched], skipped: dict[str, str], process_rank: int, refused: Mapping[str, str]
) -> list[Watched]:
    """What this process sends of it: not what the daemon would refuse again, nor what another process sends."""
    found = []
    for item in chosen:
        if (code := refused.get(item.label)) is not None:  # another thread's, that forgets some
            skipped[item.label] = f"refused: {code}"
        elif (reason := not_mine(item, process_rank)) is not None:
            skipped[item.label] = reason
        else:
            found.append(item)
    return found


def not_mine(item: Watched, process_rank: int) -> str | None:
    """Why this process does not send it; None: it does."""
    if (process_rank if item.replica is None else item.replica) != 0:
        is_told = item.replica is not None or "torch.distributed.pipelining" not in sys.modules
        return REPLICA if is_told else LEFT_TO_FIRST
    return None if item.num_bytes else "other processes hold all of it"
