"""The query endpoint: the current state for late joiners, and events again for subscribers that missed some."""

from __future__ import annotations

import logging
from collections import Counter

import zmq.asyncio

from rankd.answers import Answers
from rankd.auth import Grant
from rankd.door import Door
from rankd.sockets import let_others_run, send_now
from rankd_client.wire import Query, Reply, WireError, decode_query, encode_reply, query_id_of

log = logging.getLogger("rankd.query")


class QueryServer:
    """Answers one query at a time on a ROUTER socket. A query that is malformed or not allowed is answered with its
    code."""

    def __init__(self, socket: zmq.asyncio.Socket, answers: Answers, counters: Counter[str], door: Door) -> None:
        self.socket = socket
        self.answers = answers
        self.counters = counters
        self.door = door

    async def serve(self) -> None:
        while True:
            await let_others_run()
            identity, *parts = await self.socket.recv_multipart(copy=False)
            source = self.door.enter(parts)
            frames = [part.bytes for part in parts]
            try:
                reply = self._answer(decode_query(frames), source.grant)
            except WireError as error:
                code = f"num_refused_{error.code}"
                self.counters[code] += 1
                if self.counters[code] in (1, 10, 100, 1000):
                    log.warning("refused query times=%d %s", self.counters[code], error)
                reply = Reply(query_id_of(frames), self.answers.stream_id, error=error.code)
            if not send_now(self.socket, [identity.bytes, *encode_reply(reply)]):
                self.counters["dropped_replies"] += 1

    def _answer(self, query: Query, grant: Grant | None) -> Reply:
        if grant is None or not grant.may("subscribe"):
            raise WireError("not_allowed", "this key may not subscribe")
        if query.run is not None and not grant.covers(query.run):
            raise WireError("not_allowed", f"run {query.run!a} is outside this key's namespace")
        stream_id = self.answers.stream_id
        if query.verb == "state":
            return Reply(query.query_id, stream_id, self.answers.state(query.run, grant))
        if query.run is None:
            raise WireError("bad_field", "run=None; expected the run to resume")
        events, first, last = self.answers.since(query.kind, query.run, query.from_seq, query.stream_id)
        return Reply(query.query_id, stream_id, {"first": first, "last": last}, tuple(events))
