"""Who may do what at this moment: a live view of the authorised keys, and the doors that ask it."""

from __future__ import annotations

import errno
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import zmq

from rankd.auth import files
from rankd.auth.grants import OWNER, Grant
from rankd.auth.keyring import Keyring, key_paths, parse_grant
from rankd.auth.zap import ZapHandler
from rankd.quota import NO_QUOTA, Quota
from rankd_client.keys import KeyFileError, needs_key, parse_file, read_file

log = logging.getLogger("rankd.auth")

ZAP_DOMAIN = b"rankd"

TRANSIENT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT})
"""What a system in need says of any file; it is no reason to cut anybody off."""

HANDSHAKE_MS = 5_000
"""What a handshake may take, and how long somebody refused waits until he can ask again: libzmq's 30 s are long for who
was just authorized."""

Stamp = tuple[int, ...]
"""Changes when a file does: written in place, replaced, or given to somebody else."""


@dataclass(frozen=True, slots=True)
class _View:
    """Replaced as a whole, so that other threads never see half of a change."""

    by_user_id: dict[str, Grant]
    by_public_key: dict[str, Grant]
    quotas: dict[str, Quota]
    """By namespace; asked with every snapshot that arrives."""


class Authority:
    """`find` and `find_key` may be called from any thread, the rest from one.

    With no keyring there are no keys: every connection is the owner's. Raises KeyFileError where the keyring cannot be
    used; later faults of single files are logged, and cost nobody else his rights.
    """

    def __init__(self, keyring: Keyring | None) -> None:
        self._keyring = keyring
        self._secret: str | None = None
        self._files: dict[str, tuple[Stamp, Grant | None]] = {}
        self._told: set[str] = set()
        self._view = _View({}, {}, {})
        if keyring is not None:
            _, self._secret = keyring.server()
            files.make_private_directory(keyring.authorized_directory)
            self.refresh()

    @property
    def has_keys(self) -> bool:
        """Whether TCP sockets ask for keys."""
        return self._secret is not None

    def find(self, user_id: str) -> Grant | None:
        """The grant of the connection with this User-Id; None if there is none (any more)."""
        return self._view.by_user_id.get(user_id)

    def find_key(self, public_key: str) -> Grant | None:
        """The grant of a key: 40 characters of Z85."""
        return self._view.by_public_key.get(public_key)

    def quota(self, namespace: str) -> Quota:
        """Of a namespace: for each limit, the smallest that any of its keys has."""
        return self._view.quotas.get(namespace, NO_QUOTA)

    def disk_quotas(self) -> dict[str, int]:
        """Namespace → bytes of history that it may have, where that is limited."""
        quotas = self._view.quotas.items()
        return {namespace: quota.max_disk_bytes for namespace, quota in quotas if quota.max_disk_bytes is not None}

    @property
    def public_key(self) -> str | None:
        """The daemon's own (Z85), by which clients know it; None without keys."""
        return None if self._keyring is None else self._keyring.server()[0]

    def http_token(self) -> str:
        """What HTTP requests from elsewhere carry. Raises KeyFileError where there is none to be had."""
        if self._keyring is None:
            raise KeyFileError("there are no keys, hence no token")
        return self._keyring.http_token()

    def refresh(self) -> set[str]:
        """Look at the files again. Returns the User-Ids that hold no longer or mean something else now (rights or
        namespace): their connections are to be cut. One stat a file; to be called each second."""
        if self._keyring is None:
            return set()
        try:
            paths = sorted(key_paths(self._keyring.authorized_directory))
            self._told.discard("")
        except OSError as error:
            if error.errno in TRANSIENT:
                self._tell("", f"keys stay as they were: {self._keyring.authorized_directory}: {error.strerror}")
                return set()
            self._tell("", f"no key is authorized: {self._keyring.authorized_directory}: {error.strerror}")
            paths = []
        found = {path.name: seen for path in paths if (seen := self._look(path)) is not None}
        if found.keys() == self._files.keys() and all(seen is self._files[name] for name, seen in found.items()):
            return set()
        self._files = found
        before, self._view = self._view.by_user_id, self._make_view()
        return self._changes(before, self._view.by_user_id)

    def serve(self, context: zmq.Context[Any]) -> None:
        """Answer the handshakes of the sockets of `context`, on a thread that ends with it. Before they are bound."""
        if self.has_keys:
            ZapHandler(context, ZAP_DOMAIN, self.find_key).start()

    def secure(self, socket: zmq.Socket[Any], address: str) -> Door:
        """Before `socket` is bound for peers who come by `address` (through whatever stands between): CURVE where that
        is TCP and there are keys, else as it is. Whoever reads from it asks the door that this returns."""
        if self._secret is None or not needs_key(address):
            return Door(self, asks_for_keys=False)
        socket.curve_server = True
        socket.curve_secretkey = self._secret.encode()
        socket.zap_domain = ZAP_DOMAIN
        socket.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # else, with nobody there to ask, libzmq lets every key in
        return Door(self, asks_for_keys=True)

    def _look(self, path: Path) -> tuple[Stamp, Grant | None] | None:
        """The file's stamp and grant, None for one that is gone. Broken, it grants nothing until it changes."""
        known = self._files.get(path.name)
        stamp: Stamp = ()
        try:
            info = path.lstat()
            stamp = (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino, info.st_mode, info.st_uid)
            if known is not None and known[0] == stamp:
                return known
            grant = parse_grant(path, parse_file(path, read_file(path), "authorized"))
        except (KeyFileError, OSError) as error:
            cause = error if isinstance(error, OSError) else error.__cause__
            if isinstance(cause, FileNotFoundError):
                return None
            if isinstance(cause, OSError) and cause.errno in TRANSIENT:
                self._tell(path.name, f"{error}; it stays as it was")
                return known and ((), known[1])  # a stamp that no file has: it is looked at again
            self._tell(path.name, f"{error}; it grants nothing")
            return stamp, None
        self._told.discard(path.name)
        return stamp, grant

    def _make_view(self) -> _View:
        by_user_id: dict[str, Grant] = {}
        by_public_key: dict[str, Grant] = {}
        for name, (_, grant) in self._files.items():
            if grant is None:
                continue
            if (other := by_public_key.get(grant.public_key)) is not None:
                self._tell(name, f"{name} has the public key of {other.name}; it grants nothing")
                continue
            by_user_id[grant.user_id] = by_public_key[grant.public_key] = grant
        quotas: dict[str, Quota] = {}
        for grant in by_user_id.values():
            quotas[grant.namespace] = _tighter(quotas.get(grant.namespace, NO_QUOTA), grant.quota)
        return _View(by_user_id, by_public_key, quotas)

    def _changes(self, before: dict[str, Grant], after: dict[str, Grant]) -> set[str]:
        changed = set()
        for user_id, grant in before.items():
            now = after.get(user_id)
            if now is None:
                log.info("key %s is revoked", grant.name)
                changed.add(user_id)
            elif replace(now, quota=NO_QUOTA) != replace(grant, quota=NO_QUOTA):
                log.info("key %s has other rights", grant.name)
                changed.add(user_id)
        for user_id in after.keys() - before.keys():
            log.info("key %s is authorized", after[user_id].name)
        return changed

    def _tell(self, name: str, line: str) -> None:
        if name not in self._told:
            self._told.add(name)
            log.warning("%s", line)


@dataclass(frozen=True, slots=True)
class Door:
    """What tells, for one socket, whose a message is."""

    authority: Authority
    asks_for_keys: bool

    def grant(self, frame: zmq.Frame) -> Grant | None:
        """Of the peer that sent `frame` (received with copy=False); None where its key is revoked."""
        return self.authority.find(user_id_of(frame)) if self.asks_for_keys else OWNER


def user_id_of(frame: zmq.Frame) -> str:
    """The User-Id of the connection a frame came by; "" where it made itself known by no key."""
    try:
        return str(frame.get("User-Id"))
    except zmq.ZMQError:
        return ""


def _tighter(one: Quota, other: Quota) -> Quota:
    """For each limit the smaller one."""
    return Quota(
        max_runs=_smaller(one.max_runs, other.max_runs),
        max_bytes=_smaller(one.max_bytes, other.max_bytes),
        max_disk_bytes=_smaller(one.max_disk_bytes, other.max_disk_bytes),
    )


def _smaller(*limits: int | None) -> int | None:
    return min((limit for limit in limits if limit is not None), default=None)
