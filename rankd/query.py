"""The query endpoint: the current state for late joiners, and events again for subscribers that missed some."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import zmq.asyncio

from rankd.answers import Answers
from rankd.auth import Grant
from rankd.door import Door, Source
from rankd.sockets import let_others_run, receive_now, send_now
from rankd.turns import Turns
from rankd_client.wire import Query, Reply, WireError, decode_query, encode_reply, query_id_of

log = logging.getLogger("rankd.query")

MAX_WAITING = 4096
"""Queries that wait for an answer: 100 subscribers that come back at once, with all that each asks at a time."""

MAX_WAITING_BYTES = 16 << 20

TAKE_SECONDS = 0.005
"""For taking in as many queries as there are, before others have their turn: whose turn it is to be answered can only
be told of those that are here. On the socket they wait in the order of connections, of which one user may have
hundreds."""

OTHERS_SHARE = 3
"""Times as long as taking in took, or answering, for everybody else: measuring, heartbeats, pushes."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A query that waits, from the ROUTER's peer `identity`."""

    identity: bytes
    source: Source
    frames: list[bytes]


class QueryServer:
    """Answers one query at a time on a ROUTER socket, of each user in turn. One that is malformed, not allowed or too
    much is answered with its code."""

    def __init__(self, socket: zmq.asyncio.Socket, answers: Answers, counters: Counter[str], door: Door) -> None:
        self.socket = socket
        self.answers = answers
        self.counters = counters
        self.door = door
        self._turns: Turns[Asked] = Turns(MAX_WAITING, MAX_WAITING_BYTES)
        self._came = asyncio.Event()

    async def serve(self) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._take_in())
            tasks.create_task(self._answer_all())

    async def _take_in(self) -> None:
        while True:
            message = await self.socket.recv_multipart(copy=False)
            began = time.monotonic()
            self._take(message)
            while time.monotonic() - began < TAKE_SECONDS and (more := receive_now(self.socket)) is not None:
                self._take(more)
            await asyncio.sleep(OTHERS_SHARE * (time.monotonic() - began))

    def _take(self, message: Sequence[zmq.Frame]) -> None:
        identity, *parts = message
        asked = Asked(identity.bytes, self.door.enter(parts), [part.bytes for part in parts])
        for other in self._turns.put(asked.source.user, asked, sum(map(len, asked.frames))):
            self._reply(other, self._refusal(other, WireError("busy", f"more than {MAX_WAITING} queries wait")))
        self._came.set()

    async def _answer_all(self) -> None:
        while True:
            if (asked := self._turns.next()) is None:
                self._came.clear()
                await self._came.wait()
                continue
            if asked.source.has_left:  # what it asked may be dear to find
                self.counters["dropped_replies"] += 1
                await let_others_run()
                continue
            began = time.thread_time()
            try:
                reply = await self._answer(decode_query(asked.frames), asked.source.grant)
            except WireError as error:
                reply = self._refusal(asked, error)
            self._reply(asked, reply)
            # A state of thousands of alerts takes 30 ms to write, and any number of them may be asked for.
            await asyncio.sleep(OTHERS_SHARE * (time.thread_time() - began))

    def _reply(self, asked: Asked, reply: Reply) -> None:
        if not send_now(self.socket, [asked.identity, *encode_reply(reply)]):
            self.counters["dropped_replies"] += 1

    def _refusal(self, asked: Asked, error: WireError) -> Reply:
        code = f"num_refused_{error.code}"
        self.counters[code] += 1
        if self.counters[code] in (1, 10, 100, 1000):
            log.warning("refused query times=%d %s", self.counters[code], error)
        return Reply(query_id_of(asked.frames), self.answers.stream_id, error=error.code)

    async def _answer(self, query: Query, grant: Grant | None) -> Reply:
        if grant is None or not grant.may("subscribe"):
            raise WireError("not_allowed", "this key may not subscribe")
        if query.run is not None and not grant.covers(query.run):
            raise WireError("not_allowed", f"run {query.run!a} is outside this key's namespace")
        if query.verb == "state":
            state = await self.answers.state(query.run, grant)
            return Reply(query.query_id, self.answers.stream_id, state)
        if query.run is None:
            raise WireError("bad_field", "run=None; expected the run to resume")
        stream_id = self.answers.stream_id  # in which the events count, though it may end while they are read
        events, first, last = await self.answers.since(query.kind, query.run, query.from_seq, query.stream_id)
        return Reply(query.query_id, stream_id, {"first": first, "last": last}, tuple(events))
