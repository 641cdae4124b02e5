"""The daemon's directory of keys: its own pair, the public keys it has authorised, and the token for HTTP.

DIR/                    mode 0700
  server.key            secret and public, mode 0600
  server.pub            what clients know the daemon by
  authorized/NAME.json  public key, namespace, rights, quota
  http.token            mode 0600
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Collection, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import zmq

from rankd.auth import files
from rankd.auth.grants import RIGHTS, Grant
from rankd.quota import Quota
from rankd_client.keys import (
    KeyFileError,
    check_key,
    check_name,
    check_namespace,
    parse_file,
    read_file,
    read_secret,
    shown,
)

TOKEN_BYTES = 32


def default_directory() -> Path:
    """`$XDG_CONFIG_HOME/rankd/keys`, else `~/.config/rankd/keys`."""
    config = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(config) / "rankd" / "keys"


def new_pair() -> tuple[str, str]:
    """A new (public, secret) pair of CURVE keys, in Z85."""
    public, secret = zmq.curve_keypair()
    return public.decode(), secret.decode()


class Keyring:
    """Every method reads or writes the files at once, nothing is kept. All raise KeyFileError."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authorized_directory = directory / "authorized"
        self._server_path = directory / "server.key"
        self._token_path = directory / "http.token"

    @property
    def exists(self) -> bool:
        """Whether the daemon has a pair of its own here."""
        return self._server_path.exists()

    def create(self) -> bool:
        """Make what is not there yet; whether the daemon's pair is new."""
        files.make_private_directory(self.directory)
        files.make_private_directory(self.authorized_directory)
        new = not self.exists
        if new:
            public, secret = new_pair()
            content = files.json_bytes("server-key", {"public": public, "secret": secret})
            new = _write_unless_there(self._server_path, content)
        public, _ = self.server()
        content = files.json_bytes("server-public", {"public": public})
        files.write_file(self.directory / "server.pub", content, replace=True, mode=0o644)
        self.http_token()
        return new

    def server(self) -> tuple[str, str]:
        """The daemon's own (public, secret) pair."""
        self._check_directory()
        path = self._server_path
        content = parse_file(path, read_secret(path), "server-key")
        public, secret = (check_key(path, what, content.get(what)) for what in ("public", "secret"))
        if zmq.curve_public(secret.encode()).decode() != public:
            raise KeyFileError(f"{str(path)!r}: public and secret are no pair")
        return public, secret

    def http_token(self) -> str:
        """The token that HTTP asks for beyond loopback; made if there is none yet."""
        self._check_directory()
        if not self._token_path.exists():
            _write_unless_there(self._token_path, (secrets.token_urlsafe(TOKEN_BYTES) + "\n").encode())
        token = read_secret(self._token_path).decode("ascii", "replace").strip()
        if len(token) < TOKEN_BYTES or not token.isascii() or not token.isprintable() or " " in token:
            raise KeyFileError(f"{str(self._token_path)!r} is no token; remove it, and a new one is made")
        return token

    def authorize(self, grant: Grant, *, replace: bool = False) -> None:
        """Allow what `grant` says. Without `replace`, a name that is taken is refused; a public key always is."""
        path = self._path(grant.name)
        for other in self.names():
            if other != grant.name and self._public_of(other) == grant.public_key:
                raise KeyFileError(f"{grant.name!r} has the public key of {other!r}; expected one of its own")
        content = {
            "name": check_name(path, grant.name),
            "public": check_key(path, "public", grant.public_key),
            "namespace": check_namespace(path, grant.namespace),
            "rights": sorted(check_rights(path, grant.rights)),
            "quota": asdict(check_quota(path, asdict(grant.quota))),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        files.make_private_directory(self.authorized_directory)
        try:
            files.write_file(path, files.json_bytes("authorized", content), replace=replace)
        except KeyFileError as error:
            if isinstance(error.__cause__, FileExistsError):
                raise KeyFileError(f"{grant.name!r} is authorized already; revoke it first") from None
            raise

    def revoke(self, name: str) -> bool:
        """Whether it was there. A daemon that runs notices within a second or two."""
        try:
            self._path(name).unlink()
            files.sync_directory(self.authorized_directory)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise KeyFileError(f"{name!r} cannot be revoked: {error.strerror}") from error
        return True

    def names(self) -> list[str]:
        """Names of the keys that are authorised, whether or not their files can be used."""
        try:
            return sorted(path.stem for path in key_paths(self.authorized_directory))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise KeyFileError(f"{str(self.authorized_directory)!r} cannot be read: {error.strerror}") from error

    def grant(self, name: str) -> tuple[Grant, str]:
        """The grant of this name, and since when."""
        path = self._path(name)
        content = parse_file(path, read_file(path), "authorized")
        return parse_grant(path, content), str(content.get("since", ""))[:40]

    def _public_of(self, name: str) -> str:
        try:
            return self.grant(name)[0].public_key
        except KeyFileError:  # a broken file authorises nobody
            return ""

    def _path(self, name: str) -> Path:
        return self.authorized_directory / f"{check_name(self.authorized_directory, name)}.json"

    def _check_directory(self) -> None:
        try:
            info = self.directory.stat()
        except OSError as error:
            raise KeyFileError(f"{str(self.directory)!r} cannot be read: {error.strerror}") from error
        files.check_private_directory(self.directory, info)


def key_paths(directory: Path) -> Iterator[Path]:
    """The files NAME.json, but not those that are being written. Raises OSError."""
    return (path for path in directory.iterdir() if path.suffix == ".json" and not path.name.startswith("."))


def parse_grant(path: Path, content: dict[str, Any]) -> Grant:
    """The grant in authorized/NAME.json. Raises KeyFileError."""
    name = check_name(path, content.get("name"))
    if name != path.stem:
        raise KeyFileError(f"{str(path)!r}: name {name!r}; expected {path.stem!r}, as the file is called")
    return Grant(
        name=name,
        public_key=check_key(path, "public", content.get("public")),
        namespace=check_namespace(path, content.get("namespace")),
        rights=check_rights(path, content.get("rights")),
        quota=check_quota(path, content.get("quota", {})),
    )


def check_rights(where: object, rights: object) -> frozenset[str]:
    """Raises KeyFileError."""
    ok = isinstance(rights, Collection) and not isinstance(rights, str) and len(rights) > 0
    if not ok or not all(isinstance(right, str) and right in RIGHTS for right in rights):  # type: ignore[attr-defined]
        raise KeyFileError(f"{shown(where)}: rights {rights!r}; expected some of {', '.join(RIGHTS)}")
    return frozenset(rights)  # type: ignore[call-overload, no-any-return]


def check_quota(where: object, limits: object) -> Quota:
    """Raises KeyFileError."""
    known = Quota.__dataclass_fields__
    if not isinstance(limits, dict):
        raise KeyFileError(f"{shown(where)}: quota {limits!r}; expected a table of {', '.join(known)}")
    for key, value in limits.items():
        if key not in known:
            raise KeyFileError(f"{shown(where)}: quota.{key}; expected {', '.join(known)}")
        if value is not None and (type(value) is not int or value < 1):
            raise KeyFileError(f"{shown(where)}: quota.{key}={value!r}; expected an integer of at least 1, or null")
    return Quota(**limits)


def _write_unless_there(path: Path, content: bytes) -> bool:
    """Two processes may make the same file at once: one of them does, both use it."""
    try:
        files.write_file(path, content)
    except KeyFileError as error:
        if isinstance(error.__cause__, FileExistsError):
            return False
        raise
    return True
