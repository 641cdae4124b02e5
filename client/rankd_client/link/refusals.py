"""What a daemon's refusals mean for what was sent, by their codes."""

from __future__ import annotations

LASTING = frozenset({"layer_too_large", "too_many_layers"})
"""The same layer would be refused again: it is not copied any more until the next welcome."""

MAX_REFUSED = 10_000
"""Of those it is remembered: more than a model has, but names may be new at each push. The oldest go first."""

LOANS_ENDED = frozenset({"not_lent", "loan_ended"})
"""No verdict on a snapshot: its memory could not be read, and it goes again after another hello."""

UNREADABLE = frozenset(
    {
        *("frame_count", "header_too_large", "bad_header", "missing_field", "bad_field", "bad_name", "bad_body"),
        *("unknown_dtype", "reserved_dtype", "unknown_role", "bad_shape", "bad_shard", "size_mismatch", "bad_chunk"),
        "payload_too_large",
    }
)
"""The daemon could not read it, and so cannot say what it was; sent again, it would be refused again."""
