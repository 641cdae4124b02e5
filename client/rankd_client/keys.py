"""Key files: a client's pair, and the daemon's public key by which it knows the daemon.

A key is needed on TCP alone: on `ipc://` the user id of the peer is looked at instead, and a key is not even read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rankd_client.wire import join_run
from rankd_client.wire.names import is_namespace

if TYPE_CHECKING:
    import zmq

VERSION = 1
MAX_FILE_BYTES = 64 << 10
"""A key file has some 300; nothing larger is read into memory."""

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"
_VALUES = {char: value for value, char in enumerate(_Z85)}


class KeyFileError(ValueError):
    """A key file that cannot be used: names the file, what is wrong with it and what was expected."""


@dataclass(frozen=True, slots=True)
class Key:
    """A client's key. `public`, `secret` and `server` (the daemon's public key) are 40 characters of Z85."""

    name: str
    namespace: str
    public: str
    secret: str = field(repr=False)
    server: str

    def apply(self, socket: zmq.Socket[Any], address: str) -> None:
        """Make `socket` speak CURVE with this key, before it connects to `address`. Nothing for an ipc address."""
        if needs_key(address):
            socket.curve_serverkey = self.server.encode()
            socket.curve_publickey = self.public.encode()
            socket.curve_secretkey = self.secret.encode()

    def full_run(self, run: str) -> str:
        """The name of `run` on the stream: in this key's namespace, unless it is a full name already. Raises WireError
        (bad_name)."""
        return run if run.startswith("@") else join_run(self.namespace, run)


def needs_key(address: str) -> bool:
    """Whether a key is used on this ZeroMQ address."""
    return address.startswith("tcp://")


def find_key(key: str | os.PathLike[str] | None, address: str) -> Key | None:
    """The key for `address`: of the file `key`, else of RANKD_KEY; None where neither is given or it is ipc. A
    discovery file's URL may lead to TCP, so it does have one.

    Raises KeyFileError.
    """
    if key is not None and not isinstance(key, str | os.PathLike):
        raise KeyFileError(f"key={key!r}: expected the path of a key file")
    path = key if key is not None else os.environ.get("RANKD_KEY")
    return load_key(path) if path and not address.startswith("ipc://") else None


def load_key(path: str | os.PathLike[str]) -> Key:
    """The key in a NAME.key file, which nobody but its owner may be able to read. Raises KeyFileError."""
    path = Path(path)
    content = parse_file(path, read_secret(path), "client-key")
    return Key(
        name=check_name(path, content.get("name")),
        namespace=check_namespace(path, content.get("namespace")),
        public=check_key(path, "public", content.get("public")),
        secret=check_key(path, "secret", content.get("secret")),
        server=check_key(path, "server", content.get("server")),
    )


def read_secret(path: Path) -> bytes:
    """The bytes of a file that only its owner (this user, or root) can read. Raises KeyFileError."""
    return read_file(path, forbidden_mode=0o077)


def read_file(path: Path, forbidden_mode: int = 0o022, *, any_owner: bool = False) -> bytes:
    """The bytes of a regular file of this user or root (or `any_owner`), without these mode bits; by default, that
    nobody else can write. Raises KeyFileError; its __cause__ is the OSError, where there was one."""
    if "\0" in str(path):
        raise KeyFileError(f"{str(path)!r} is no path")
    try:  # O_NONBLOCK: a FIFO put in the file's place must not hold us up
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise KeyFileError(f"{str(path)!r} is not a regular file")
            if not any_owner and info.st_uid not in (os.geteuid(), 0):
                raise KeyFileError(f"{str(path)!r} belongs to user id {info.st_uid}; expected {os.geteuid()} or root")
            if (mode := stat.S_IMODE(info.st_mode)) & forbidden_mode:
                what = "read or change" if forbidden_mode & 0o044 else "change"
                raise KeyFileError(
                    f"{str(path)!r} has mode {mode:04o}: others could {what} it; expected {mode & ~forbidden_mode:04o}"
                )
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise KeyFileError(f"{str(path)!r} is a symbolic link; expected the file itself") from error
        raise KeyFileError(f"{str(path)!r} cannot be read: {error.strerror}") from error
    if len(content) > MAX_FILE_BYTES:
        raise KeyFileError(f"{str(path)!r} has more than {MAX_FILE_BYTES} bytes; expected a key file")
    return content


def parse_file(path: Path, content: bytes, kind: str) -> dict[str, Any]:
    """The JSON object of a key file whose "kind" is this one. Raises KeyFileError, which never quotes the content."""
    try:
        value = json.loads(content)
    except (ValueError, RecursionError):  # its own message may quote a line
        raise KeyFileError(f"{str(path)!r} holds no JSON; expected a {kind} file made by `rankd keys`") from None
    if not isinstance(value, dict) or value.get("kind") != kind:
        found = value.get("kind") if isinstance(value, dict) else type(value).__name__
        found = found if isinstance(found, str) and NAME.fullmatch(found) else "something else"
        raise KeyFileError(f"{str(path)!r} is {found}; expected a {kind} file made by `rankd keys`")
    if type(value.get("version")) is not int or value["version"] != VERSION:
        raise KeyFileError(f"{str(path)!r} has version {str(value.get('version'))[:20]!r}; expected {VERSION}")
    return value


def check_name(where: object, name: object) -> str:
    """A key's name. Raises KeyFileError."""
    if not isinstance(name, str) or not NAME.fullmatch(name):
        raise KeyFileError(f"{shown(where)}: name {name!r}; expected 1 to 64 letters, digits and . _ -")
    return name


def check_namespace(where: object, namespace: object) -> str:
    """A namespace, or "" for the common one. Raises KeyFileError."""
    if not isinstance(namespace, str) or not (namespace == "" or is_namespace(namespace)):
        raise KeyFileError(
            f"{shown(where)}: namespace {namespace!r}; expected 1 to 64 of a-z, 0-9 and . _ -, not 'daemon'"
        )
    return namespace


def check_key(where: object, what: str, text: object) -> str:
    """A CURVE key: 32 bytes as 40 characters of Z85. Raises KeyFileError, which does not quote it: it may be secret."""
    if not isinstance(text, str) or len(text) != 40:
        raise KeyFileError(f"{shown(where)}: {what} is no key; expected 40 characters of Z85")
    values = [_VALUES.get(char, -1) for char in text]
    for i in range(0, 40, 5):
        number = 0
        for value in values[i : i + 5]:
            number = number * 85 + value
        if min(values[i : i + 5]) < 0 or number >= 1 << 32:
            raise KeyFileError(f"{shown(where)}: {what} is no key; expected 40 characters of Z85")
    return text


def shown(where: object) -> str:
    """A file, or what else a wrong value stands in."""
    return repr(str(where)) if isinstance(where, Path) else str(where)
