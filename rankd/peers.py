"""The greeted connections: whose each is, what credit it has, and what ends with it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rankd.config import Limits
from rankd.door import Source
from rankd.lent import Lenders
from rankd.namespaces import namespace_of
from rankd.quota import half
from rankd.trainers import Trainers
from rankd_client.wire import LOCAL_VERSION, MIN_CHUNK_BYTES, Hello, WireError

LAST_SHARES = 16
"""A connection gets at most this fraction of the credit that is left, so that about 80 fit where 64 get a full one."""


@dataclass(slots=True)
class Peer:
    """One greeted connection. `identity` is the ROUTER's name for it, `session` the client's own over reconnects (with
    its key: whoever learns a session's bytes cannot take it without that), `run` its full name."""

    identity: bytes
    session: bytes
    source: Source
    run: str
    credit_bytes: int
    granted_bytes: int
    seen_at: float
    version: int
    world_size: int = 1
    token: str = ""
    """By which it may lend its memory."""
    crowded_out: tuple[str, str, int] | None = None
    """(layer, role, step) of the snapshot that was refused last for want of room: more of it may be on its way."""


class Peers:
    """Pure: knows who is greeted, and tells `trainers` and `lenders` who comes and goes."""

    def __init__(self, limits: Limits, trainers: Trainers, lenders: Lenders) -> None:
        self._limits = limits
        self._trainers = trainers
        self._lenders = lenders
        self._by_identity: dict[bytes, Peer] = {}
        self._by_session: dict[bytes, Peer] = {}

    def __iter__(self) -> Iterator[Peer]:
        """Those of this moment: each may be sent away in its turn."""
        return iter(list(self._by_identity.values()))

    def at(self, identity: bytes) -> Peer | None:
        return self._by_identity.get(identity)

    def of(self, session: bytes) -> Peer | None:
        """Where a session is connected now."""
        return self._by_session.get(session)

    def runs(self) -> set[str]:
        return {peer.run for peer in self._by_identity.values()}

    def greet(self, identity: bytes, source: Source, hello: Hello, now: float) -> Peer:
        """In place of whatever this connection and this session were before. Raises WireError: there is no credit left,
        or the key is for other runs."""
        assert source.grant is not None
        run = source.grant.pushed_run(hello.run)
        session = hello.session + source.grant.public_key.encode()
        for known in (self.at(identity), self.of(session)):
            if known is not None and known.session != session:
                self.dismiss(known)
            elif known is not None:
                self._forget(known)
        credit = self._grant(run)
        peer = Peer(identity, session, source, run, credit, credit, now, hello.version, hello.world_size)
        self._trainers.greeted(session, run, hello.process_rank, hello.world_size, now)
        if hello.version >= LOCAL_VERSION:
            peer.token = self._lenders.invite(hello.session)
        self._by_identity[identity] = self._by_session[session] = peer
        return peer

    def dismiss(self, peer: Peer) -> None:
        """It said bye, or is sent away: nobody misses it."""
        self._forget(peer)
        if peer.session not in self._by_session:
            self._trainers.left(peer.session)

    def lose(self, peer: Peer, why: str, now: float) -> bool:
        """It broke or fell silent; whether its session is gone by that: it may be here by another connection."""
        self._forget(peer)
        is_gone = peer.session not in self._by_session
        if is_gone:
            self._trainers.lost(peer.session, why, now)
        return is_gone

    def _forget(self, peer: Peer) -> None:
        self._lenders.dismiss(peer.token)
        self._by_identity.pop(peer.identity, None)
        if self._by_session.get(peer.session) is peer:
            del self._by_session[peer.session]

    def _grant(self, run: str) -> int:
        """Credit for one more connection: the later ones get less rather than nothing, down to one smallest chunk. The
        connections of a namespace with a name have half of all together, so that no key shuts the others out."""
        peers, total = self._by_identity.values(), self._limits.total_credit_bytes
        left = total - sum(peer.granted_bytes for peer in peers)
        if namespace := namespace_of(run):
            own = sum(peer.granted_bytes for peer in peers if namespace_of(peer.run) == namespace)
            left = min(left, half(total) - own)
        if left < MIN_CHUNK_BYTES:
            raise WireError("too_many_connections", f"{len(peers)} connections hold all credit that there is")
        return min(self._limits.credit_bytes, max(MIN_CHUNK_BYTES, left // LAST_SHARES))
