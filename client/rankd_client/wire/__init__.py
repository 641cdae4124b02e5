"""The protocol between trainer, daemon and subscribers: a pure codec, no socket, no clock.

`encode` makes frames of a message, `decode` makes a message of frames or raises `WireError`; any bytes at all give one
or the other. docs/protocol.md is the normative text; tests/golden holds the bytes.
"""

from rankd_client.wire.codec import decode, encode
from rankd_client.wire.disjoint import disjoint
from rankd_client.wire.dtypes import DTYPES, LARGEST, Dtype, dtype_by_code, row_elements
from rankd_client.wire.errors import CODES, WireError
from rankd_client.wire.limits import (
    DEFAULT_CHUNK_BYTES,
    MAX_CHUNK_BYTES,
    MAX_LAYER_NAME_BYTES,
    MAX_RUN_NAME_BYTES,
    MAX_STEP,
    MIN_CHUNK_BYTES,
    PROTOCOL_VERSION,
    SCALE_BYTES,
    SCALED_VERSION,
)
from rankd_client.wire.messages import (
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Heartbeat,
    Hello,
    Message,
    Plan,
    Refusal,
    Shard,
    Welcome,
)
from rankd_client.wire.names import DAEMON_RUN, NAMESPACE, full_run_name, join_run, split_run
from rankd_client.wire.stream import (
    Event,
    Query,
    Reply,
    decode_event,
    decode_query,
    decode_reply,
    encode_event,
    encode_query,
    encode_reply,
    heartbeat_topic,
    parse_topic,
    prefix_of,
    query_id_of,
    topic_of,
)

__all__ = [
    "CODES",
    "DAEMON_RUN",
    "DEFAULT_CHUNK_BYTES",
    "DTYPES",
    "LARGEST",
    "MAX_CHUNK_BYTES",
    "MAX_LAYER_NAME_BYTES",
    "MAX_RUN_NAME_BYTES",
    "MAX_STEP",
    "MIN_CHUNK_BYTES",
    "NAMESPACE",
    "PROTOCOL_VERSION",
    "SCALED_VERSION",
    "SCALE_BYTES",
    "Ack",
    "AlertNotice",
    "Bye",
    "Chunk",
    "Dtype",
    "Event",
    "Heartbeat",
    "Hello",
    "Message",
    "Plan",
    "Query",
    "Refusal",
    "Reply",
    "Shard",
    "Welcome",
    "WireError",
    "decode",
    "decode_event",
    "decode_query",
    "decode_reply",
    "disjoint",
    "dtype_by_code",
    "encode",
    "encode_event",
    "encode_query",
    "encode_reply",
    "full_run_name",
    "heartbeat_topic",
    "join_run",
    "parse_topic",
    "prefix_of",
    "query_id_of",
    "row_elements",
    "split_run",
    "topic_of",
]
