"""What a peer can do to a daemon's sockets with nothing but a socket: each attack returns how many messages it sent."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from rankd_client.wire import Ack, Bye, Chunk, Heartbeat, Hello, Message, Query, encode, encode_query

SIGNATURE = b"\xff" + bytes(8) + b"\x7f"
GREETING_REST = b"\x03\x01" + b"NULL".ljust(20, b"\0") + bytes(32)
GIB = 1 << 30
TIMEOUT_SECONDS = 5.0
MAX_KEPT = 40
KINDS = {"push": b"DEALER", "query": b"DEALER", "alerts": b"SUB"}


@dataclass
class Target:
    """A daemon's addresses: push, alerts, query and http, as its ready line gives them."""

    addresses: dict[str, str]
    kept: list[socket.socket] = field(default_factory=list)
    """Connections left open, to be closed at random."""

    def connect(self, name: str) -> socket.socket:
        address = self.addresses[name].removeprefix("http://").removeprefix("tcp://")
        if address.startswith("ipc://"):
            peer = socket.socket(socket.AF_UNIX)
            where: str | tuple[str, int] = address.removeprefix("ipc://")
        else:
            peer = socket.socket()
            host, port = address.rsplit(":", 1)
            where = (host, int(port))
        peer.settimeout(TIMEOUT_SECONDS)
        peer.connect(where)
        return peer

    def keep(self, peer: socket.socket, rng: random.Random) -> None:
        self.kept.append(peer)
        while len(self.kept) > MAX_KEPT:
            self.kept.pop(rng.randrange(len(self.kept))).close()


def zmtp_frame(payload: bytes, flags: int = 0) -> bytes:
    if len(payload) < 256:
        return bytes([flags, len(payload)]) + payload
    return bytes([flags | 2]) + struct.pack(">Q", len(payload)) + payload


def zmtp_message(frames: list[bytes]) -> bytes:
    return b"".join(zmtp_frame(frame, index < len(frames) - 1) for index, frame in enumerate(frames))


def shake(peer: socket.socket, kind: bytes) -> None:
    """The whole handshake, as libzmq would do it."""
    peer.sendall(SIGNATURE)
    peer.recv(10)
    peer.sendall(GREETING_REST)
    peer.sendall(zmtp_frame(b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind, 4))
    answer = b""
    while b"Socket-Type" not in answer and (more := peer.recv(4096)):
        answer += more


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, cut out or put in."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        where = rng.randrange(len(changed) + 1)
        match rng.randrange(4):
            case 0 if where < len(changed):
                changed[where] = rng.randrange(256)
            case 1:
                del changed[where : where + rng.randint(1, 8)]
            case 2:
                changed[where:where] = rng.randbytes(rng.randint(1, 8))
            case _:
                changed[where : where + 5] = rng.choice([b"\xdf", b"\xdd", b"\xc6", b"\xdb"]) + b"\xff\xff\xff\xff"
    return bytes(changed)


def valid_messages(rng: random.Random) -> list[list[bytes]]:
    """One of each that a client or subscriber sends."""
    payload = rng.randbytes(64)
    chunk = Chunk("layer", rng.randrange(100), "float32", (4, 4), 64, 0, payload)
    messages: list[Message] = [Hello("hostile", rng.randbytes(16)), chunk, Heartbeat(), Ack("recorded", "l", 1), Bye()]
    queries = [Query(1, "state"), Query(2, "resume", "hostile", "alert", 1)]
    frames = [[bytes(part) for part in encode(message)] for message in messages]
    return frames + [[bytes(part) for part in encode_query(query)] for query in queries]


def random_bytes(target: Target, name: str, rng: random.Random) -> int:
    with target.connect(name) as peer:
        peer.sendall(rng.randbytes(rng.randint(1, 4096)))
    return 1


def mutated_handshake(target: Target, name: str, rng: random.Random) -> int:
    with target.connect(name) as peer:
        ready = zmtp_frame(b"\x05READY\x0bSocket-Type\0\0\0\x06DEALER\x08Identity\0\0\0\0", 4)
        peer.sendall(mutate(SIGNATURE + GREETING_REST + ready, rng))
        peer.sendall(rng.randbytes(100))
    return 1


def mutated_frames(target: Target, name: str, rng: random.Random) -> int:
    with target.connect(name) as peer:
        shake(peer, KINDS[name])
        messages = [zmtp_message(frames) for frames in valid_messages(rng)] * 4
        peer.sendall(mutate(b"".join(messages), rng))
    return len(messages)


def mutated_messages(target: Target, name: str, rng: random.Random) -> int:
    """Sound frames with unsound content, which reach the daemon's own code."""
    with target.connect(name) as peer:
        shake(peer, KINDS[name])
        sent = []
        for _ in range(20):
            for frames in valid_messages(rng):
                frames[0] = frames[0] if rng.random() < 0.1 else mutate(frames[0], rng)
                sent.append(zmtp_message(frames[: 1 if name == "query" else 2]))
        peer.sendall(b"".join(sent))
        if rng.random() < 0.5:  # hear what it says before leaving
            peer.settimeout(0.05)
            with contextlib.suppress(TimeoutError):
                peer.recv(65536)
    return len(sent)


def truncated(target: Target, name: str, rng: random.Random) -> int:
    with target.connect(name) as peer:
        shake(peer, KINDS[name])
        sent = zmtp_message(rng.choice(valid_messages(rng)))
        peer.sendall(sent[: rng.randrange(len(sent))])
    return 1


def huge_claim(target: Target, name: str, rng: random.Random) -> int:
    with target.connect(name) as peer:
        shake(peer, KINDS[name])
        peer.sendall(bytes([rng.choice([2, 3, 6])]) + struct.pack(">Q", rng.choice([GIB, 2**63 - 1, 2**64 - 1])))
        peer.sendall(bytes(1000))
    return 1


def endless_multipart(target: Target, name: str, rng: random.Random) -> int:
    num_frames = 0
    with target.connect(name) as peer:
        shake(peer, KINDS[name])
        for _ in range(50):
            peer.sendall(zmtp_frame(b"x" * rng.choice([0, 1, 200, 60_000]), 1) * 20)
            num_frames += 20
    return num_frames


def half_open(target: Target, name: str, rng: random.Random) -> int:
    peer = target.connect(name)
    peer.sendall(SIGNATURE[: rng.randint(1, 10)])
    target.keep(peer, rng)
    return 1


def slow(target: Target, name: str, rng: random.Random) -> int:
    peer = target.connect(name)
    shake(peer, KINDS[name])
    peer.sendall(b"\1\x20abc")
    target.keep(peer, rng)
    for other in target.kept:
        with contextlib.suppress(OSError):
            other.send(b"x")
    return 1


def reset(target: Target, name: str, rng: random.Random) -> int:
    with target.connect(name) as peer:
        shake(peer, KINDS[name])
        sent = zmtp_message(valid_messages(rng)[0])
        peer.sendall(sent + sent[: rng.randrange(len(sent))])
        if peer.family == socket.AF_INET:
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return 1


def subscriptions(target: Target, name: str, rng: random.Random) -> int:
    num_sent = 0
    with target.connect("alerts") as peer:
        shake(peer, b"SUB")
        for _ in range(30):
            topics = [rng.randbytes(rng.randint(0, 40)) for _ in range(50)]
            peer.sendall(b"".join(zmtp_frame(b"\x09SUBSCRIBE" + topic, 4) for topic in topics))
            num_sent += 50
    return num_sent


def pings(target: Target, name: str, rng: random.Random) -> int:
    with target.connect(name) as peer:
        shake(peer, KINDS[name])
        peer.sendall(zmtp_frame(b"\x04PING" + os.urandom(rng.randint(0, 20)), 4) * 100)
    return 100


def http_garbage(target: Target, name: str, rng: random.Random) -> int:
    with target.connect("http") as peer:
        request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\nhello"
        peer.sendall(mutate(request, rng) if rng.random() < 0.7 else rng.randbytes(500))
        peer.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            peer.recv(4096)
    return 1


ATTACKS: tuple[Callable[[Target, str, random.Random], int], ...] = (
    random_bytes, mutated_handshake, mutated_frames, mutated_messages, mutated_messages, truncated, huge_claim,
    endless_multipart, half_open, slow, reset, subscriptions, pings, http_garbage,
)  # fmt: skip
