"""Why a daemon that is there does not let us in: libzmq tries again without a word, so we look at how it greets."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

from rankd_client.console import FaultLog
from rankd_client.keys import Key, needs_key

ABSENT = "no daemon is there yet"

GREETING_SECONDS = 2.0
"""A peer that takes longer over 32 bytes than this is not told of."""

_SIGNATURE = b"\xff" + bytes(7) + b"\x01\x7f"
_OURS = _SIGNATURE + b"\x03"  # and no more: a peer that has read our mechanism, another than its own, hangs up at once
_MECHANISM = slice(12, 32)


def mechanism_at(address: str, timeout_seconds: float = GREETING_SECONDS) -> str | None:
    """The mechanism of the ZeroMQ peer (ZMTP 3) at a TCP address: "NULL", "CURVE", …; None where none greets in time.

    Waits for the name of the host to be resolved, which has no time limit, besides.
    """
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    deadline = time.monotonic() + timeout_seconds
    greeting = b""
    with (
        contextlib.suppress(OSError, ValueError),
        socket.create_connection((host.strip("[]"), int(port)), timeout_seconds) as peer,
    ):
        peer.sendall(_OURS)
        while len(greeting) < _MECHANISM.stop and (left := deadline - time.monotonic()) > 0:
            peer.settimeout(left)
            if not (more := peer.recv(_MECHANISM.stop - len(greeting))):
                break
            greeting += more
    if len(greeting) < _MECHANISM.stop or not (greeting[0] == 0xFF and greeting[9] == 0x7F and greeting[10] >= 3):
        return None
    name = greeting[_MECHANISM].rstrip(b"\0").decode("ascii", "replace")
    return name if name.isalnum() else None


def refusal(address: str, mechanism: str | None, key: Key | None) -> str | None:
    """Why a peer of this mechanism does not take who comes with `key`, in a sentence; None if it may not be the key."""
    if mechanism == "CURVE" and key is None:
        return f"the daemon at {address} did not accept us without a key: it has keys, set RANKD_KEY to a key file"
    if mechanism == "CURVE" and key is not None:
        return (
            f"the daemon at {address} did not accept the key {key.name}: it is not authorized there (any more), or is "
            "the key for another daemon; see `rankd keys list` there"
        )
    if mechanism == "NULL" and key is not None:
        return (
            f"the daemon at {address} has no keys, so nothing shows that it is the one of the key {key.name}: not "
            "connecting; without RANKD_KEY it would be taken at its word"
        )
    return None


class Look:
    """At who is at a TCP address, on a thread of its own, one at a time; `on_found` is called there at its end."""

    def __init__(self, key: Key | None, on_found: Callable[[], None] = lambda: None) -> None:
        self._key = key
        self._on_found = on_found
        self._thread: threading.Thread | None = None
        self._found: list[str] = []

    def start(self, address: str) -> None:
        """Nobody has answered at `address`."""
        if self._thread is None or not self._thread.is_alive():
            self._found.clear()  # of an absence that is over
            self._thread = threading.Thread(target=self._run, args=(address,), name="rankd-look", daemon=True)
            self._thread.start()

    def take(self) -> str | None:
        """What was found since: a refusal, "" where it is not known to be one; None: nothing yet."""
        return self._found.pop() if self._found else None

    def _run(self, address: str) -> None:
        self._found.append(refusal(address, mechanism_at(address), self._key) or "")
        self._on_found()


class Inquiry:
    """Why nobody lets the trainer in, said once. `on_found` is called when there is something to `tell`, on another
    thread."""

    def __init__(self, key: Key | None, faults: FaultLog, on_found: Callable[[], None]) -> None:
        self._faults = faults
        self._look = Look(key, on_found)
        self._refused = False

    def start(self, address: str) -> None:
        """Nobody has answered at `address`."""
        if not needs_key(address):
            self._faults.down(ABSENT)
        elif not self._refused:
            self._look.start(address)

    def tell(self) -> None:
        """What was found since."""
        while (found := self._look.take()) is not None:
            if found:
                self._refused = True  # that is said; there is no need to knock on top of what libzmq does
                self._faults.once("key", f"{found}; training goes on")
            else:
                self._faults.down(ABSENT)
