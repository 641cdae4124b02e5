"""Who sent a message, and what that one may do: between a bound socket and the stage that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from rankd.auth import OWNER, Grant
from rankd.auth import Door as KeyDoor

if TYPE_CHECKING:
    from rankd.gate import Connection, Gate


@dataclass(frozen=True, slots=True)
class Source:
    """Where a message came from. `grant` is None where its key was revoked since the connection was made."""

    grant: Grant | None
    connection: Connection | None = None

    @property
    def has_left(self) -> bool:
        """Whether nobody is there any more to be answered."""
        return self.connection is not None and self.connection.has_ended

    @property
    def user(self) -> str:
        """Whose turn it is where many wait: the key's holder; without keys, whoever comes from this address or user."""
        if self.grant is not None and self.grant.public_key:
            return self.grant.user_id
        return "" if self.connection is None else self.connection.peer


class Door:
    """Of one socket. Without a gate and keys (tests), whoever comes is the owner."""

    def __init__(self, gate: Gate | None = None, keys: KeyDoor | None = None) -> None:
        self._gate = gate
        self._keys = keys

    def enter(self, frames: Sequence[zmq.Frame]) -> Source:
        """The source of a message that was just received, `frames` without the routing id. To be called for every one
        of them: the gate lets in no more than was taken."""
        grant = OWNER if self._keys is None else self._keys.grant(frames[-1])
        connection = None
        if self._gate is not None:
            connection = self._gate.connection(frames[-1])
            if connection is not None:
                self._gate.delivered(connection, len(frames))
                connection.user_id = "" if grant is None else grant.user_id
        return Source(grant, connection)

    def cut(self, source: Source, reason: str) -> None:
        """End this connection, and no other of the same address or key."""
        if self._gate is not None and source.connection is not None:
            self._gate.cut(source.connection, reason)
