"""One error for everything a peer can get wrong, with a stable code per rule."""

from __future__ import annotations

CODES: dict[str, str] = {
    # frames and headers
    "frame_count": "a message has a header frame, and a payload frame only where its type asks for one",
    "header_too_large": "a header frame is at most 64 KiB",
    "bad_header": "a header or body is one msgpack map, without extensions; keys are strings and come once",
    "unknown_type": "the key 't' names a message type of this protocol",
    "missing_field": "every required key of the type is there",
    "bad_field": "every value has its key's type and range",
    "bad_name": "a run or layer name is UTF-8 without NUL, not empty, within its length; a full name has its form",
    "unknown_version": "the version in a hello is one that this daemon speaks",
    # tensors
    "unknown_dtype": "a dtype is a code of the table",
    "reserved_dtype": "a dtype's code is in use in the connection's version",
    "unknown_role": "a role is weight, update, gradient or feature",
    "bad_shape": "a tensor has 2 to 8 dimensions, each at least 1, and fewer than 2**48 elements",
    "bad_shard": "a shard is in-range, non-empty, disjoint rectangles or ranges; whole rows where these have scales",
    "size_mismatch": "a shard's total is its number of elements times the item size, and its scales",
    "bad_chunk": "a chunk lies within its total, cuts no element, and only the last one is shorter than 4 MiB",
    "payload_too_large": "a payload frame is at most 16 MiB",
    # conversation
    "no_hello": "a connection says hello before anything else",
    "wrong_direction": "clients and daemons send their own message types",
    "credit_exceeded": "a client sends no more payload bytes than it was granted",
    "chunk_order": "the chunks of a shard come in order, from offset 0, with one header",
    "shard_conflict": "all shards of one layer and step agree in shape, dtype and kind, and do not overlap",
    "layer_too_large": "a layer fits the daemon's limit",
    "too_many_connections": "the daemon has credit left for another connection",
    "too_many_runs": "the daemon has room for another run",
    "too_many_layers": "a run has room for another layer",
    "assembly_full": "the daemon has room for another unfinished layer",
    "timed_out": "every shard of a layer arrives in time",
    "measure_failed": "the daemon can measure the matrix",
    "not_allowed": "a key has the right, and the run is in its namespace",
    "quota_exceeded": "a namespace stays within its quota",
    # lent memory
    "unknown_token": "who lends memory gives the token and session of a greeted push connection",
    "bad_memory": "lent memory is a sealed memfd, of the size that was said, all of it allocated",
    "too_much_lent": "the daemon has room for another block, or another connection that lends",
    "not_lent": "lent bytes lie in a block that this connection lends, behind its header",
    "loan_ended": "a lent block's epoch is the one it was lent with, after its bytes were copied",
    # stream and queries
    "bad_topic": "a topic is KIND NUL RUN NUL or KIND@NAMESPACE NUL RUN NUL",
    "bad_sequence": "a sequence frame is 8 bytes of stream id and a number below 2**63, big-endian",
    "body_too_large": "an event's or reply's body is at most 4 MiB",
    "bad_body": "a body holds what JSON can: no binary, NaN or infinity, at most 16 levels",
    "unknown_query": "a query's verb is one of this protocol",
    "busy": "the daemon has room for another query that waits",
    "unavailable": "the daemon can read its history",
}


class WireError(ValueError):
    """A peer broke rule `code`. Nothing was changed or allocated on its behalf."""

    def __init__(self, code: str, detail: str) -> None:
        if code not in CODES:
            raise KeyError(f"wire error code {code!r} is not in the table")
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail
