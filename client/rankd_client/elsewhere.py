"""A model all of which other processes send: it is not looked at any more, but for now and then."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rankd_client.console import warn
from rankd_client.turns import LEFT_TO_FIRST, REPLICA, not_mine
from rankd_client.watch import Watched

MAX_UNSEEN = 100
"""Due pushes without a look at it: a model may be sharded in place."""


class Elsewhere:
    """What the newest look found to be others' to send."""

    def __init__(self) -> None:
        self.reason = REPLICA
        self._what: tuple[int, int, frozenset[Any]] | None = None
        """The model, this process's number, and the names of what was beside the model."""
        self._num_unseen = 0
        """Due pushes since the look."""
        self._warned = False

    def holds(self, model: Any, process_rank: int, also: Any) -> bool:
        """Whether all of it was; to be asked at a due push, once."""
        if self._what != (id(model), process_rank, _names(also)) or self._num_unseen >= MAX_UNSEEN:
            return False
        self._num_unseen += 1
        return True

    def looked(self, model: Any, process_rank: int, also: Any, found: Iterable[Watched]) -> None:
        """`found` is all that there is to send, of the model and beside it."""
        reasons = {not_mine(item, process_rank) for item in found} if process_rank else {None}
        if not reasons <= {REPLICA, LEFT_TO_FIRST}:
            return
        self._what, self._num_unseen = (id(model), process_rank, _names(also)), 0
        self.reason = LEFT_TO_FIRST if LEFT_TO_FIRST in reasons else REPLICA
        if LEFT_TO_FIRST in reasons and not self._warned:
            self._warned = True
            warn(
                f"process {process_rank} sends nothing: parameters that no adapter places are process 0's to send. If "
                "these are a stage of a pipeline, process 0 has no such ones, and nobody does: give "
                "adapters=[MegatronAdapter(...)], or one of your own"
            )


def _names(also: Any) -> frozenset[Any]:
    return frozenset(also) if isinstance(also, Mapping) else frozenset()
