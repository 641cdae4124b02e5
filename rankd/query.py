"""The query endpoint: the current state for late joiners, and events again for subscribers that missed some."""

from __future__ import annotations

import logging
from collections import Counter
from typing import Any, Protocol

import zmq.asyncio

from rankd.sockets import let_others_run, send_now
from rankd_client.wire import Event, Query, Reply, WireError, decode_query, encode_reply

log = logging.getLogger("rankd.query")


class History(Protocol):
    """What answers are made of; the record stage is one."""

    def state(self, run: str | None) -> dict[str, Any]: ...

    def since(self, kind: str, run: str, from_seq: int) -> tuple[list[Event], int, int]: ...


class QueryServer:
    """Answers one query at a time on a ROUTER socket, from memory. A malformed query is answered with its code."""

    def __init__(self, socket: zmq.asyncio.Socket, stream_id: str, history: History, counters: Counter[str]) -> None:
        self.socket = socket
        self.stream_id = stream_id
        self.history = history
        self.counters = counters

    async def serve(self) -> None:
        while True:
            await let_others_run()
            identity, *frames = await self.socket.recv_multipart()
            try:
                reply = self._answer(decode_query(frames))
            except WireError as error:
                self.counters[f"num_refused_{error.code}"] += 1
                reply = Reply(0, self.stream_id, error=error.code)
            if not send_now(self.socket, [identity, *encode_reply(reply)]):
                self.counters["dropped_replies"] += 1

    def _answer(self, query: Query) -> Reply:
        if query.verb == "state":
            return Reply(query.query_id, self.stream_id, self.history.state(query.run))
        if query.run is None:
            raise WireError("bad_field", "run=None; expected the run to resume")
        events, first, last = self.history.since(query.kind, query.run, query.from_seq)
        return Reply(query.query_id, self.stream_id, {"first": first, "last": last}, tuple(events))
