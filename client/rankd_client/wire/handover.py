"""The messages of the arena socket: a client lends its memory, the daemon takes it or says why not. Each is one packet,
a msgpack map; the descriptors of the blocks travel beside a `Lend`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rankd_client.wire import fields as f
from rankd_client.wire.errors import WireError
from rankd_client.wire.limits import BLOCK_HEADER_BYTES, MAX_BLOCKS, MAX_HANDOVER_BYTES, MAX_STEP
from rankd_client.wire.messages import Refusal

_DETAIL_BYTES = MAX_HANDOVER_BYTES // 2


@dataclass(frozen=True, slots=True)
class Lend:
    """Client → daemon: blocks `first_block` on, of `sizes` bytes with their headers, whose epoch is `epoch`. `token` is
    the welcome's, `session` the hello's."""

    token: str
    session: bytes
    epoch: int
    first_block: int
    sizes: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Taken:
    """Daemon → client: blocks 0 to `num_blocks` - 1 are lent from now on."""

    num_blocks: int


Handover = Lend | Taken | Refusal


def encode_handover(message: Handover) -> bytes:
    match message:
        case Lend():
            header: dict[str, Any] = {"t": "lend", "token": message.token, "session": message.session}
            header |= {"epoch": message.epoch, "first_block": message.first_block, "sizes": list(message.sizes)}
        case Taken():
            header = {"t": "taken", "num_blocks": message.num_blocks}
        case Refusal():
            header = {"t": "refusal", "code": message.code, "detail": f.cut(message.detail, _DETAIL_BYTES)}
    return f.pack_map(header, MAX_HANDOVER_BYTES)


def decode_handover(packet: bytes) -> Handover:
    """The message in `packet`. Raises WireError, and nothing else, for every other input."""
    header = f.unpack_map(packet, MAX_HANDOVER_BYTES, "header_too_large")
    match f.take(header, "t", f.one_of("unknown_type", ("lend", "taken", "refusal"))):
        case "lend":
            return _parse_lend(header)
        case "taken":
            return Taken(f.take(header, "num_blocks", f.integer(1, MAX_BLOCKS)))
        case _:
            return Refusal(f.take(header, "code", f.text(64)), f.take(header, "detail", f.text(_DETAIL_BYTES), ""))


def _parse_lend(header: dict[str, Any]) -> Lend:
    lend = Lend(
        token=f.take(header, "token", f.text(64)),
        session=f.take(header, "session", f.binary(16)),
        epoch=f.take(header, "epoch", f.integer(1, MAX_STEP)),
        first_block=f.take(header, "first_block", f.integer(0, MAX_BLOCKS - 1)),
        sizes=f.take(header, "sizes", f.integers(MAX_BLOCKS, BLOCK_HEADER_BYTES + 1, MAX_STEP)),
    )
    if lend.first_block + len(lend.sizes) > MAX_BLOCKS:
        raise WireError("bad_field", f"sizes of {len(lend.sizes)} blocks from {lend.first_block} on; at most block 15")
    return lend
