"""What a daemon says of its runs: the state query of docs/protocol.md."""

from __future__ import annotations

from typing import Any

import zmq

from rankd_client.endpoints import endpoints_of
from rankd_client.wire import Query, decode_reply, encode_query

ANSWER_SECONDS = 30


def state(url: str) -> dict[str, Any]:
    """The body of the answer."""
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        socket.set(zmq.LINGER, 0)
        socket.connect(endpoints_of(url).query)
        socket.send_multipart(encode_query(Query("state", 1)))
        if not socket.poll(ANSWER_SECONDS * 1000):
            raise RuntimeError(f"no answer to a state query in {ANSWER_SECONDS} s")
        return dict(decode_reply(socket.recv_multipart()).body)


def num_measurements(url: str) -> dict[str, int]:
    """Run → how many measurements of it were recorded."""
    return {row["run"]: row["num_measurements"] for row in state(url)["runs"]}
