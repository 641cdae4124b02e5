"""The numbers of the protocol, each with its reason."""

PROTOCOL_VERSION = 1
"""Frozen: docs/protocol.md says what may still be added."""

SCALED_VERSION = 2
"""Version 1 and the dtypes that have a scale per row; asked for only by who sends them."""

LOCAL_VERSION = 3
"""Version 2 and two messages: `lent`, a chunk in memory that the daemon can read itself, and `measurement`, numbers
that the trainer computed. A client falls back to what it needs at least where a daemon does not speak it."""

SCALE_BYTES = 4
"""A float32 behind each row: float16 could not hold the scales of weights of 1e-30 or 1e30."""

MIN_STACK_SIDE = 16
"""A tensor of three dimensions is a stack of matrices if both their sides are this long, and each of their rows has a
scale; kernels of 1-D convolutions, the usual other case, are shorter."""

MIN_CHUNK_BYTES = 4 << 20
MAX_CHUNK_BYTES = 16 << 20
"""Larger frames were slower (64 MB frames over loopback TCP), smaller ones pay per message; and a bound on what one
message may claim makes a claim of gigabytes cost its sender the bytes."""

DEFAULT_CHUNK_BYTES = 8 << 20

MAX_HEADER_BYTES = 64 << 10
"""A shard of MAX_PIECES rectangles, four 9-byte integers each, with the longest names."""

MAX_PIECES = 1024
"""Rectangles or ranges in one shard: flat optimizers cut a matrix in a few pieces, not thousands."""

MAX_REPORT_BYTES = 64 << 10
"""The body of a `measurement`: some tens of numbers, with room for whatever else the trainer says of the layer."""

MAX_BLOCKS = 16
"""Pieces of memory that one connection may lend: an arena grows a few times, if at all."""

BLOCK_HEADER_BYTES = 64
"""In front of each lent block: its epoch, in a cache line of its own."""

MAX_HANDOVER_BYTES = 2 << 10
"""A packet of the arena socket: 16 sizes and two names, or a refusal and its reason."""

MAX_RUN_NAME_BYTES = 256
"""Of a run's own name; its full name has its namespace in front, at most 66 bytes more."""

MAX_LAYER_NAME_BYTES = 1024
MAX_TEXT_BYTES = 4096
"""Free text (details, messages)."""

MAX_DIMENSIONS = 8
MAX_ELEMENTS = 1 << 48
"""Products of dimensions stay far inside 64 bits, so no check can be overflowed in any language."""

MAX_STEP = (1 << 63) - 1
MAX_BODY_BYTES = 4 << 20
"""Bodies of events and replies: an alert is under 2 kB; a state reply is cut before it gets here."""

MAX_BODY_DEPTH = 16
"""Maps and lists inside one another: ours need 3; readers in any language may recurse."""

BYTES_PER_ELEMENT = 64
"""A map or list may claim one element for each of these bytes that its frame may have (1,024 in a header, 65,536 in a
body): decoders make room for what is claimed, so that lists claimed inside lists once cost 80 MB for 64 KiB."""

MAX_REPLY_FRAMES = 1001
"""A reply's header and at most 1,000 events; a subscriber asks again for more."""
