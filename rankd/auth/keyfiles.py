"""The files that go between a daemon's owner and its users: NAME.key, NAME.pub, server.pub. All raise KeyFileError."""

from __future__ import annotations

from pathlib import Path

from rankd.auth.files import json_bytes, write_file
from rankd_client.keys import check_key, check_name, check_namespace, parse_file, read_file


def write_key(path: Path, name: str, namespace: str, public: str, secret: str, server: str) -> None:
    """A client's key file: secret. Never over one that is there."""
    content = {"name": name, "namespace": namespace, "public": public, "secret": secret, "server": server}
    write_file(path, json_bytes("client-key", content))


def write_public(path: Path, name: str, namespace: str, public: str) -> None:
    """What of a key its owner hands out."""
    write_file(path, json_bytes("client-public", {"name": name, "namespace": namespace, "public": public}), mode=0o644)


def read_public(path: Path) -> tuple[str, str, str]:
    """(name, namespace, public key) of a NAME.pub. Came from others: its mode is not looked at."""
    content = parse_file(path, read_file(path, forbidden_mode=0, any_owner=True), "client-public")
    name, namespace = check_name(path, content.get("name")), check_namespace(path, content.get("namespace"))
    return name, namespace, check_key(path, "public", content.get("public"))


def read_server(path: Path) -> str:
    """The daemon's public key of a server.pub. Whoever can change the file can pass for the daemon."""
    return check_key(path, "public", parse_file(path, read_file(path), "server-public").get("public"))
