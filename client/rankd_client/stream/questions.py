"""The queries that wait for an answer."""

from __future__ import annotations

from dataclasses import dataclass

from rankd_client.stream.claims import Key
from rankd_client.wire import Query

MAX_TRIES = 3
PATIENCE_TICKS = 2
"""A query is asked MAX_TRIES times, each time when it had no answer for this many ticks, and then given up."""

MAX_RESUMES = 32
"""Resume queries under way at once: each may bring 1,000 events, which have to be held somewhere."""


@dataclass(slots=True)
class Pending:
    """`newest`: for a resume, the topic's newest number when it was asked first."""

    query: Query
    newest: int = 0
    num_ticks: int = 0
    num_tries: int = 1

    @property
    def key(self) -> Key:
        return self.query.kind, self.query.run or ""


class Questions:
    """At most one state query at a time, and MAX_RESUMES resumes. `take` gives what is to be sent."""

    def __init__(self, run: str | None) -> None:
        self._run = run
        self._pending: dict[int, Pending] = {}
        self._next_id = 1
        self._to_send: list[Query] = []
        self._state_again = False

    @property
    def full(self) -> bool:
        return len(self._pending) > MAX_RESUMES

    def clear(self) -> None:
        self._pending.clear()
        self._to_send.clear()
        self._state_again = False

    def ask_state(self) -> None:
        """Ask for the state as it is from now on: if one is under way, which may be older, another follows it."""
        if any(pending.query.verb == "state" for pending in self._pending.values()):
            self._state_again = True
        else:
            self._ask(Query("state", self._next_id, run=self._run), 0)

    def ask_resume(self, key: Key, from_seq: int, newest: int, stream_id: str | None = None) -> None:
        """`stream_id`: of a former stream; None for the current one."""
        query = Query("resume", self._next_id, kind=key[0], run=key[1], from_seq=from_seq, stream_id=stream_id)
        self._ask(query, newest)

    def _ask(self, query: Query, newest: int) -> None:
        self._next_id += 1
        self._pending[query.query_id] = Pending(query, newest)
        self._to_send.append(query)

    def find(self, query_id: int) -> Pending | None:
        return self._pending.get(query_id)

    def close(self, query_id: int) -> None:
        """Answered or given up."""
        pending = self._pending.pop(query_id)
        if pending.query.verb == "state" and self._state_again:
            self._state_again = False
            self.ask_state()

    def on_tick(self) -> list[Pending]:
        """Ask again what has waited long enough. Returns those to be given up, closed already."""
        given_up = []
        for query_id, pending in list(self._pending.items()):
            pending.num_ticks += 1
            if pending.num_ticks < PATIENCE_TICKS:
                continue
            if pending.num_tries < MAX_TRIES:
                pending.num_ticks = 0
                pending.num_tries += 1
                self._to_send.append(pending.query)
            else:
                self.close(query_id)
                given_up.append(pending)
        return given_up

    def ask_again(self) -> None:
        """Everything, without counting a try: nobody was there to answer."""
        self._to_send += [pending.query for pending in self._pending.values()]

    def take(self) -> tuple[Query, ...]:
        queries, self._to_send = tuple(self._to_send), []
        return queries
