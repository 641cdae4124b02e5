"""The push socket: greets clients, keeps their credit, hands on checked chunks. A peer's fault never ends the loop."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import replace
from typing import Any

import zmq.asyncio

from rankd.conduct import NO_FAULT, Conduct
from rankd.config import Limits
from rankd.door import Door, Source
from rankd.lent import Borrower, Lenders
from rankd.peers import Peer, Peers
from rankd.sockets import let_others_run, send_now
from rankd.streams import Streams
from rankd.trainers import Trainers, read_stats
from rankd_client.wire import (
    LOCAL_VERSION,
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
        self._borrower = Borrower(self.lenders, counters)
        self._peers = Peers(limits, self.trainers, self.lenders)
        self._conduct = Conduct(door)
        self._told: set[bytes] = set()
        """Connections that heard in this heartbeat what fires."""
        self._num_greetings_logged = 0

    def runs(self) -> set[str]:
        """Runs with a connected client."""
        return self._peers.runs()

    async def next(self) -> tuple[Peer, Chunk | Reported]:
        """The next chunk or report of a greeted peer that kept within its credit; what else there is, is dealt with."""
        while True:
            await let_others_run()
            identity, *frames = await self.socket.recv_multipart(copy=False)
            source = self.door.enter(frames)
            peer = self._peers.at(identity.bytes)
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
        self._borrower.confirm()

    def give_credit(self, peer: Peer, chunk: Chunk | Reported) -> None:
        """Tell `peer` that `chunk` was taken: its bytes may be sent again."""
        if num_bytes := self._earn(peer, chunk):
            self._send(peer.identity, Ack("received", chunk.layer, chunk.step, chunk.role, num_bytes))
        if isinstance(chunk, Chunk):
            self._borrower.end()

    def _earn(self, peer: Peer, part: Chunk | Lent | Reported) -> int:
        """The bytes of credit that come back; none to a connection that has said hello since, which grants all anew."""
        if self._peers.at(peer.identity) is not peer:
            return 0
        num_bytes = _cost(part)
        peer.credit_bytes += num_bytes
        return num_bytes

    def refuse_chunk(self, peer: Peer, chunk: Chunk | Reported, error: WireError) -> None:
        """Tell `peer` which rule it broke. The snapshot that `chunk` belongs to is dropped; its credit comes back."""
        num_bytes = self._earn(peer, chunk)  # a borrowed payload cannot be asked once it is given back
        if isinstance(chunk, Chunk):
            self._borrower.end()
        self._refuse_part(peer, chunk, num_bytes, error)

    def _refuse_part(self, peer: Peer, chunk: Chunk | Reported, num_bytes: int, error: WireError) -> None:
        snapshot = (chunk.layer, chunk.role, chunk.step)
        self._refuse(peer.identity, Refusal(error.code, error.detail, chunk.layer, chunk.step, chunk.role, num_bytes))
        if error.code in NO_FAULT:
            peer.crowded_out = snapshot
        elif error.code != "chunk_order" or peer.crowded_out != snapshot:
            self._count_fault(peer.identity, peer.source, error.code)

    def acknowledge(self, sessions: Iterable[bytes], message: Ack | Refusal | Plan) -> None:
        """Tell the clients of `sessions`, wherever they are connected now, what became of a snapshot; or their plan."""
        for session in sessions:
            if (peer := self._peers.of(session)) is not None:
                self._send(peer.identity, message)

    def acknowledge_all(self, answers: Iterable[tuple[Iterable[bytes], Ack | Refusal]]) -> None:
        """As `acknowledge`, of several."""
        for sessions, message in answers:
            self.acknowledge(sessions, message)

    def notify(self, run: str, notice: AlertNotice) -> None:
        """Send an alert back to the run's own trainers."""
        for peer in self._peers:
            if peer.run == run:
                self._send(peer.identity, notice)

    def announce(self, run: str, plan: Plan) -> None:
        """Tell the processes of a job when to push from now on."""
        for peer in self._peers:
            if peer.run == run and peer.world_size > 1:
                self._send(peer.identity, plan)

    def heartbeat(self) -> list[bytes]:
        """Once an interval: forget connections that broke or fell silent, tell the others that we live. Returns the
        sessions of those that are gone."""
        now, gone = self.clock(), []
        for peer in self._peers:
            if why := self._why_gone(peer, now):
                self._log_greeting("peer lost run=%r peer=%s: %s", peer.run, peer.identity.hex(), why)
                if self._peers.lose(peer, why, now):
                    gone.append(peer.session)
        self._conduct.heartbeat()
        self._num_greetings_logged = 0
        self._told.clear()
        return gone

    def _why_gone(self, peer: Peer, now: float) -> str:
        """Empty while it is here. Tells it that we live."""
        if now - peer.seen_at > self.limits.peer_timeout_seconds:
            why = f"silent for {self.limits.peer_timeout_seconds:g} s"
        elif self._send(peer.identity, Heartbeat()):
            return ""
        elif not peer.source.has_left:
            return "it reads no answers"
        else:
            why = "its connection broke"
        return why if self._conduct.is_gone(peer.identity, peer.seen_at) else ""

    def drop(self, keys: Set[str]) -> None:
        """End the connections made with one of these keys."""
        for peer in self._peers:
            if peer.source.grant is not None and peer.source.grant.name in keys:
                self._peers.dismiss(peer)

    def goodbye(self) -> None:
        for peer in self._peers:
            self._send(peer.identity, Bye())
            self._peers.dismiss(peer)

    def _refuse(self, identity: bytes, refusal: Refusal) -> None:
        code = f"num_refused_{refusal.code}"
        self.counters[code] += 1
        if self.counters[code] in (1, 10, 100, 1000):  # the first, then ever rarer: a hostile peer cannot fill a disk
            times = self.counters[code]
            log.warning("refused peer=%s times=%d %s: %s", identity.hex(), times, refusal.code, refusal.detail)
        self._send(identity, refusal)

    def _count_fault(self, identity: bytes, source: Source, fault: str) -> None:
        """Cut off whoever only breaks rules."""
        if self._conduct.count_fault(identity, source, fault) and (peer := self._peers.at(identity)) is not None:
            self._peers.dismiss(peer)

    def _handle(self, identity: bytes, source: Source, peer: Peer | None, message: Message) -> Chunk | Reported | None:
        """The chunk to hand on, or None when `message` needed no more than this stage."""
        match message:
            case Hello():
                self._greet(identity, source, message)
                if self._conduct.count_hello(identity):
                    self._count_fault(identity, source, "many_hellos")
            case Chunk() | Lent() | Reported() | Heartbeat() | Bye() if peer is None:
                if not isinstance(message, Bye):
                    raise WireError("no_hello", "this connection has not said hello")
            case Chunk() | Lent() | Reported():
                assert peer is not None
                peer.seen_at = self.clock()
                num_bytes = _cost(message)
                if num_bytes > peer.credit_bytes:
                    self._peers.dismiss(peer)
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
                self._peers.dismiss(peer)
            case _:
                raise WireError("wrong_direction", f"a {type(message).__name__} from a client")
        return None

    def _borrow(self, peer: Peer, lent: Lent) -> Chunk | None:
        """The chunk whose payload is the client's own memory; None where it cannot be read."""
        try:
            return self._borrower.borrow(peer.token, lent)
        except WireError as error:
            self._refuse_part(peer, lent.chunk, self._earn(peer, lent), error)
            return None

    def _greet(self, identity: bytes, source: Source, hello: Hello) -> None:
        before = self._peers.at(identity)
        peer = self._peers.greet(identity, source, hello, self.clock())
        self.counters["num_hellos"] += 1
        self._log_greeting(
            "peer greeted run=%r process_rank=%d world_size=%d agent=%r peer=%s",
            peer.run, hello.process_rank, hello.world_size, hello.agent, identity.hex(),
        )  # fmt: skip
        self._send(identity, self._welcome(peer))
        is_back = before is None or (before.session, before.run) != (peer.session, peer.run)
        if is_back and identity not in self._told:
            self._told.add(identity)
            for alert in self.firing(peer.run):  # what was raised while this client was away
                self._send(identity, AlertNotice(alert))

    def _welcome(self, peer: Peer) -> Welcome:
        credit, seconds = peer.granted_bytes, self.limits.heartbeat_seconds
        chunk_bytes = min(self.limits.chunk_bytes, credit)
        plan = self.plan(peer.run, peer.world_size)
        welcome = Welcome(self.streams.stream_id, credit, chunk_bytes, seconds, peer.version, plan)
        if peer.token:
            welcome = replace(welcome, arena_socket=self.lenders.socket_name, arena_token=peer.token)
        return welcome

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
