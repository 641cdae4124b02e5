"""The push socket: greets clients, keeps their credit, hands on checked chunks. A peer's fault never ends the loop."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass, replace
from typing import Any

import zmq.asyncio

from rankd.config import Limits
from rankd.door import Door, Source
from rankd.lent import Lenders, Loan
from rankd.quota import half, namespace_of
from rankd.sockets import let_others_run, send_now
from rankd.streams import Streams
from rankd.trainers import Trainers, read_stats
from rankd_client.wire import (
    LOCAL_VERSION,
    MIN_CHUNK_BYTES,
    Ack,
    AlertNotice,
    Bye,
    Chunk,
    Heartbeat,
    Hello,
    Lent,
    Message,
    Plan,
    Refusal,
    Reported,
    Welcome,
    WireError,
    decode,
    encode,
)

log = logging.getLogger("rankd.receive")

MAX_GREETINGS_LOGGED = 100
"""Lines about connections that come and go, per heartbeat."""

CUT_FOR_ONE = frozenset({"not_allowed", "credit_exceeded"})
"""Faults that no honest client commits; a revoked key is at the end of its rights here. The connection ends with the
next heartbeat, so that the refusal, by which a trainer's log says why, gets there first."""

LAST_SHARES = 16
"""A connection gets at most this fraction of the credit that is left, so that about 80 fit where 64 get a full one."""


MAX_FAULTS = 100
"""Refusals of one connection within one heartbeat, after which it is cut off: an honest client stops at the first."""

MAX_HELLOS = 3
"""Hellos of one connection within one heartbeat that are no faults: an honest client waits for the answer."""

NO_FAULT = frozenset(
    {
        *("assembly_full", "layer_too_large", "quota_exceeded", "too_many_layers", "too_many_runs"),
        *("not_lent", "loan_ended"),
    }
)
"""A client cannot know what there is room for, and may be refused so with each of its layers in turn; nor what of its
memory was read, when it takes that back."""


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


class Receive:
    """Reads the ROUTER socket and answers on it.

    Sending never waits: a peer that does not read its answers loses them (and is served again after its next hello).
    """

    def __init__(
        self,
        socket: zmq.asyncio.Socket,
        limits: Limits,
        streams: Streams,
        clock: Callable[[], float],
        counters: Counter[str],
        firing: Callable[[str], Iterable[Mapping[str, Any]]],
        door: Door,
        trainers: Trainers | None = None,
        plan: Callable[[str, int], Plan] = lambda run, world_size: Plan(),
        lenders: Lenders | None = None,
    ) -> None:
        """`plan`: of a run, for a client of a job of so many processes."""
        self.socket = socket
        self.limits = limits
        self.streams = streams
        self.door = door
        self.clock = clock
        self.counters = counters
        self.firing = firing
        self.trainers = Trainers() if trainers is None else trainers
        self.plan = plan
        self.lenders = Lenders(limits, counters) if lenders is None else lenders
        self._loan: Loan | None = None
        """Of the chunk that `next` gave last, where it is lent."""
        self._peers: dict[bytes, Peer] = {}
        self._sessions: dict[bytes, Peer] = {}
        self._num_faults: Counter[bytes] = Counter()
        self._ending: dict[bytes, tuple[Source, str]] = {}
        """Connections to be cut off with the next heartbeat, and why."""
        self._num_hellos: Counter[bytes] = Counter()
        self._told: set[bytes] = set()
        """Connections that heard in this heartbeat what fires."""
        self._num_greetings_logged = 0

    def runs(self) -> set[str]:
        """Runs with a connected client."""
        return {peer.run for peer in self._peers.values()}

    async def next(self) -> tuple[Peer, Chunk | Reported]:
        """The next chunk or report of a greeted peer that kept within its credit; what else there is, is dealt with."""
        while True:
            await let_others_run()
            identity, *frames = await self.socket.recv_multipart(copy=False)
            source = self.door.enter(frames)
            peer = self._peers.get(identity.bytes)
            try:
                if source.grant is None or not source.grant.may("push"):
                    raise WireError("not_allowed", "this key may not push")
                # What a stranger sends is read in any version, to be answered that it has to say hello.
                version = LOCAL_VERSION if peer is None else peer.version
                message = decode([frame.buffer for frame in frames], version)
                chunk = self._handle(identity.bytes, source, peer, message)
            except WireError as error:
                self._refuse(identity.bytes, Refusal(error.code, error.detail))
                self._count_fault(identity.bytes, source, error.code)
                continue
            if chunk is not None and peer is not None:
                return peer, chunk

    def confirm(self) -> None:
        """To be called when the payload of a chunk was copied, before anything is made of the copy. Raises WireError
        where the copy may be torn, because the client has taken back what it had lent."""
        if self._loan is not None:
            self._loan.confirm()

    def give_credit(self, peer: Peer, chunk: Chunk | Reported) -> None:
        """Tell `peer` that `chunk` was taken: its bytes may be sent again."""
        num_bytes = _cost(chunk)
        peer.credit_bytes += num_bytes
        self._send(peer.identity, Ack("received", chunk.layer, chunk.step, chunk.role, num_bytes))
        if isinstance(chunk, Chunk):
            self._end_loan()

    def refuse_chunk(self, peer: Peer, chunk: Chunk | Reported, error: WireError) -> None:
        """Tell `peer` which rule it broke. The snapshot that `chunk` belongs to is dropped; its credit comes back."""
        num_bytes = _cost(chunk)
        if isinstance(chunk, Chunk):
            self._end_loan()
        self._refuse_part(peer, chunk, num_bytes, error)

    def _refuse_part(self, peer: Peer, chunk: Chunk | Reported, num_bytes: int, error: WireError) -> None:
        snapshot = (chunk.layer, chunk.role, chunk.step)
        peer.credit_bytes += num_bytes
        self._refuse(peer.identity, Refusal(error.code, error.detail, chunk.layer, chunk.step, chunk.role, num_bytes))
        if error.code in NO_FAULT:
            peer.crowded_out = snapshot
        elif error.code != "chunk_order" or peer.crowded_out != snapshot:
            self._count_fault(peer.identity, peer.source, error.code)

    def acknowledge(self, sessions: Iterable[bytes], message: Ack | Refusal) -> None:
        """Tell the clients of `sessions`, wherever they are connected now, what became of a snapshot."""
        for session in sessions:
            if (peer := self._sessions.get(session)) is not None:
                self._send(peer.identity, message)

    def notify(self, run: str, notice: AlertNotice) -> None:
        """Send an alert back to the run's own trainers."""
        for peer in self._peers.values():
            if peer.run == run:
                self._send(peer.identity, notice)

    def announce(self, run: str, plan: Plan) -> None:
        """Tell the processes of a job when to push from now on."""
        for peer in self._peers.values():
            if peer.run == run and peer.world_size > 1:
                self._send(peer.identity, plan)

    def heartbeat(self) -> list[bytes]:
        """Once an interval: forget connections that broke or fell silent, tell the others that we live. Returns the
        sessions of those that are gone."""
        now, gone = self.clock(), []
        for peer in list(self._peers.values()):
            why = ""
            if now - peer.seen_at > self.limits.peer_timeout_seconds:
                log.info("peer silent run=%r peer=%s", peer.run, peer.identity.hex())
                why = f"silent for {self.limits.peer_timeout_seconds:g} s"
            elif not self._send(peer.identity, Heartbeat()):
                why = "its connection broke" if peer.source.has_left else "it reads no answers"
            if why:
                self._forget(peer)
                if peer.session not in self._sessions:  # else it is here by another connection
                    self.trainers.lost(peer.session, why, now)
                    gone.append(peer.session)
        for source, fault in self._ending.values():
            self.door.cut(source, fault)
        self._ending.clear()
        self._num_greetings_logged = 0
        self._num_faults.clear()
        self._num_hellos.clear()
        self._told.clear()
        return gone

    def drop(self, keys: Set[str]) -> None:
        """End the connections made with one of these keys."""
        for peer in list(self._peers.values()):
            if peer.source.grant is not None and peer.source.grant.name in keys:
                self._dismiss(peer)

    def goodbye(self) -> None:
        for peer in list(self._peers.values()):
            self._send(peer.identity, Bye())
            self._dismiss(peer)

    def _refuse(self, identity: bytes, refusal: Refusal) -> None:
        code = f"num_refused_{refusal.code}"
        self.counters[code] += 1
        if self.counters[code] in (1, 10, 100, 1000):  # the first, then ever rarer: a hostile peer cannot fill a disk
            times = self.counters[code]
            log.warning("refused peer=%s times=%d %s: %s", identity.hex(), times, refusal.code, refusal.detail)
        self._send(identity, refusal)

    def _count_fault(self, identity: bytes, source: Source, fault: str) -> None:
        """Cut off whoever only breaks rules. A client that the daemon forgot is told so as often as it takes."""
        if fault == "no_hello":
            return
        self._num_faults[identity] += 1
        too_many = self._num_faults[identity] >= MAX_FAULTS
        if too_many:
            self.door.cut(source, fault)
        elif fault in CUT_FOR_ONE:
            self._ending[identity] = source, fault
        if (too_many or fault in CUT_FOR_ONE) and (peer := self._peers.get(identity)) is not None:
            self._dismiss(peer)

    def _handle(self, identity: bytes, source: Source, peer: Peer | None, message: Message) -> Chunk | Reported | None:
        """The chunk to hand on, or None when `message` needed no more than this stage."""
        match message:
            case Hello():
                self._greet(identity, source, message)
                self._num_hellos[identity] += 1
                if self._num_hellos[identity] > MAX_HELLOS:
                    self._count_fault(identity, source, "many_hellos")
            case Chunk() | Lent() | Reported() | Heartbeat() | Bye() if peer is None:
                if not isinstance(message, Bye):
                    raise WireError("no_hello", "this connection has not said hello")
            case Chunk() | Lent() | Reported():
                assert peer is not None
                peer.seen_at = self.clock()
                num_bytes = _cost(message)
                if num_bytes > peer.credit_bytes:
                    self._dismiss(peer)
                    raise WireError("credit_exceeded", f"{num_bytes} bytes; credit left {peer.credit_bytes}")
                peer.credit_bytes -= num_bytes
                self.counters["num_received_bytes"] += num_bytes
                return self._borrow(peer, message) if isinstance(message, Lent) else message
            case Heartbeat():
                assert peer is not None
                peer.seen_at = self.clock()
                if message.stats:
                    stats, num_bad = read_stats(message.stats)
                    self.counters["num_bad_stats"] += num_bad
                    self.trainers.told(peer.session, stats, peer.seen_at)
            case Bye():
                assert peer is not None
                self._log_greeting("peer left run=%r peer=%s", peer.run, identity.hex())
                self._dismiss(peer)
            case _:
                raise WireError("wrong_direction", f"a {type(message).__name__} from a client")
        return None

    def _borrow(self, peer: Peer, lent: Lent) -> Chunk | None:
        """The chunk whose payload is the client's own memory; None where it cannot be read."""
        self._end_loan()
        try:
            self._loan = self.lenders.borrow(peer.token, lent)
        except WireError as error:
            self._refuse_part(peer, lent.chunk, lent.num_bytes, error)
            return None
        self.counters["num_borrowed_bytes"] += lent.num_bytes
        return replace(lent.chunk, payload=self._loan.view)

    def _end_loan(self) -> None:
        if self._loan is not None:
            self._loan.end()
            self._loan = None

    def _greet(self, identity: bytes, source: Source, hello: Hello) -> None:
        assert source.grant is not None
        run = source.grant.pushed_run(hello.run)
        session = hello.session + source.grant.public_key.encode()
        before = self._peers.get(identity)
        for known in (before, self._sessions.get(session)):
            if known is not None and known.session != session:
                self._dismiss(known)
            elif known is not None:
                self._forget(known)
        credit, now = self._grant(run), self.clock()
        peer = Peer(identity, session, source, run, credit, credit, now, hello.version, hello.world_size)
        self.trainers.greeted(session, run, hello.process_rank, hello.world_size, now)
        if hello.version >= LOCAL_VERSION:
            peer.token = self.lenders.invite(hello.session)
        self._peers[identity] = self._sessions[session] = peer
        self.counters["num_hellos"] += 1
        self._log_greeting(
            "peer greeted run=%r process_rank=%d world_size=%d agent=%r peer=%s",
            run, hello.process_rank, hello.world_size, hello.agent, identity.hex(),
        )  # fmt: skip
        chunk_bytes = min(self.limits.chunk_bytes, credit)
        seconds = self.limits.heartbeat_seconds
        plan = self.plan(run, hello.world_size)
        welcome = Welcome(self.streams.stream_id, credit, chunk_bytes, seconds, hello.version, plan)
        if peer.token:
            welcome = replace(welcome, arena_socket=self.lenders.socket_name, arena_token=peer.token)
        self._send(identity, welcome)
        is_back = before is None or (before.session, before.run) != (session, run)
        if is_back and identity not in self._told:
            self._told.add(identity)
            for alert in self.firing(run):  # what was raised while this client was away
                self._send(identity, AlertNotice(alert))

    def _grant(self, run: str) -> int:
        """Credit for one more connection: the later ones get less rather than nothing, down to one smallest chunk. The
        connections of a namespace with a name have half of all together, so that no key shuts the others out."""
        left = self.limits.total_credit_bytes - sum(peer.granted_bytes for peer in self._peers.values())
        if namespace := namespace_of(run):
            own = sum(peer.granted_bytes for peer in self._peers.values() if namespace_of(peer.run) == namespace)
            left = min(left, half(self.limits.total_credit_bytes) - own)
        if left < MIN_CHUNK_BYTES:
            raise WireError("too_many_connections", f"{len(self._peers)} connections hold all credit that there is")
        return min(self.limits.credit_bytes, max(MIN_CHUNK_BYTES, left // LAST_SHARES))

    def _dismiss(self, peer: Peer) -> None:
        """It said bye, or is sent away: nobody misses it."""
        self._forget(peer)
        if peer.session not in self._sessions:
            self.trainers.left(peer.session)

    def _forget(self, peer: Peer) -> None:
        self.lenders.dismiss(peer.token)
        self._peers.pop(peer.identity, None)
        if self._sessions.get(peer.session) is peer:
            del self._sessions[peer.session]

    def _log_greeting(self, message: str, *values: object) -> None:
        """Who comes and goes, but not of those who do nothing else: a peer must not fill a disk."""
        self._num_greetings_logged += 1
        if self._num_greetings_logged <= MAX_GREETINGS_LOGGED:
            log.info(message, *values)

    def _send(self, identity: bytes, message: Message) -> bool:
        sent = send_now(self.socket, [identity, *encode(message)])
        self.counters["dropped_answers"] += not sent
        return sent


def _cost(message: Chunk | Lent | Reported) -> int:
    """In bytes of credit."""
    return len(message.payload) if isinstance(message, Chunk) else message.num_bytes
