import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import zmq

from rankd.auth import Grant, Keyring, default_directory
from rankd.auth.keyring import new_pair
from rankd.quota import Quota
from rankd_client.keys import KeyFileError


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    keyring = Keyring(tmp_path / "keys")
    keyring.create()
    return keyring


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in [directory, *directory.rglob("*")]}


def test_it_is_made_once_and_for_its_owner_alone(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "new" / "keys")
    assert not keyring.exists
    assert keyring.create() and keyring.exists
    before = keyring.server(), keyring.http_token()
    assert not keyring.create()
    assert (keyring.server(), keyring.http_token()) == before
    keyring.authorize(Grant("alice", new_pair()[0]))
    assert modes(keyring.directory) == {
        "keys": 0o700,
        "authorized": 0o700,
        "server.key": 0o600,
        "server.pub": 0o644,
        "http.token": 0o600,
        "alice.json": 0o600,
    }


def test_the_modes_do_not_hang_on_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        keyring = Keyring(tmp_path / "keys")
        keyring.create()
    finally:
        os.umask(before)
    assert all(mode & 0o077 == 0 for name, mode in modes(keyring.directory).items() if name != "server.pub")


def test_the_pair_is_one_and_its_public_half_stands_apart(keyring: Keyring) -> None:
    public, secret = keyring.server()
    assert zmq.curve_public(secret.encode()).decode() == public
    published = (keyring.directory / "server.pub").read_text()
    assert public == json.loads(published)["public"] and secret not in published


def test_a_token_is_long_and_made_anew_where_it_was_removed(keyring: Keyring) -> None:
    token = keyring.http_token()
    assert len(token) >= 43 and token == keyring.http_token()
    (keyring.directory / "http.token").unlink()
    assert keyring.http_token() != token


@pytest.mark.parametrize("content", ["", "short\n", "x" * 30 + "\x1b" + "x" * 30, "x" * 30 + " " + "x" * 30, "é" * 50])
def test_what_is_no_token_is_refused(keyring: Keyring, content: str) -> None:
    (keyring.directory / "http.token").write_text(content)
    with pytest.raises(KeyFileError, match="no token"):
        keyring.http_token()


@pytest.mark.parametrize("name", ["server.key", "http.token"])
def test_secrets_that_others_can_read_are_refused(keyring: Keyring, name: str) -> None:
    (keyring.directory / name).chmod(0o640)
    with pytest.raises(KeyFileError, match=f"{name}.*mode 0640"):
        keyring.server()
        keyring.http_token()


def test_a_directory_that_others_can_look_into_is_refused(keyring: Keyring) -> None:
    keyring.directory.chmod(0o750)
    for use in (keyring.server, keyring.http_token, keyring.create):
        with pytest.raises(KeyFileError, match=r"mode 0750.*expected 0700"):
            use()


def test_a_pair_that_is_none_is_refused(keyring: Keyring) -> None:
    path = keyring.directory / "server.key"
    path.write_text(json.dumps({**json.loads(path.read_text()), "public": new_pair()[0]}))
    with pytest.raises(KeyFileError, match="no pair"):
        keyring.server()


def test_a_grant_comes_back_as_it_was_given(keyring: Keyring) -> None:
    grant = Grant("alice", new_pair()[0], "team", frozenset({"push"}), Quota(3, None, 10**12))
    keyring.authorize(grant)
    assert keyring.names() == ["alice"]
    assert keyring.grant("alice")[0] == grant


def test_a_name_is_authorized_once_and_a_key_under_one_name(keyring: Keyring) -> None:
    public, _ = new_pair()
    keyring.authorize(Grant("alice", public))
    with pytest.raises(KeyFileError, match="authorized already"):
        keyring.authorize(Grant("alice", new_pair()[0]))
    with pytest.raises(KeyFileError, match="'bob' has the public key of 'alice'"):
        keyring.authorize(Grant("bob", public))
    assert keyring.grant("alice")[0].public_key == public
    assert keyring.revoke("alice") and not keyring.revoke("alice")
    keyring.authorize(Grant("bob", public))


@pytest.mark.parametrize("name", ["", "..", "../server", "a/b", ".hidden", "a\0b", "x" * 65, "@owner"])
def test_a_name_is_no_path(keyring: Keyring, name: str) -> None:
    for use in (keyring.revoke, keyring.grant):
        with pytest.raises(KeyFileError, match="expected 1 to 64"):
            use(name)
    with pytest.raises(KeyFileError, match="expected 1 to 64"):
        keyring.authorize(Grant(name, new_pair()[0]))
    assert keyring.exists


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "bob"}, "expected 'alice'"),
        ({"public": "short"}, "public is no key"),
        ({"rights": []}, "rights"),
        ({"rights": "push"}, "rights"),
        ({"rights": ["root"]}, "rights"),
        ({"rights": [["push"]]}, "rights"),
        ({"rights": None}, "rights"),
        ({"namespace": "../x"}, "namespace"),
        ({"quota": []}, "quota"),
        ({"quota": {"max_runs": 0}}, "quota.max_runs=0"),
        ({"quota": {"max_runs": True}}, "quota.max_runs=True"),
        ({"quota": {"max_bytes": 1.5}}, "quota.max_bytes=1.5"),
        ({"quota": {"max_coffee": 1}}, "quota.max_coffee"),
        ({"version": 9}, "version"),
        ({"kind": "client-key"}, "expected a authorized|client-key"),
    ],
)
def test_a_broken_grant_is_named(keyring: Keyring, change: dict[str, Any], why: str) -> None:
    keyring.authorize(Grant("alice", new_pair()[0]))
    path = keyring.authorized_directory / "alice.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(KeyFileError, match=why):
        keyring.grant("alice")


def test_what_others_could_have_written_grants_nothing(keyring: Keyring) -> None:
    keyring.authorize(Grant("alice", new_pair()[0]))
    (keyring.authorized_directory / "alice.json").chmod(0o620)
    with pytest.raises(KeyFileError, match="mode 0620: others could change it"):
        keyring.grant("alice")


def test_nothing_is_left_behind_where_writing_fails(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(KeyFileError, match="No space left"):
        keyring.authorize(Grant("alice", new_pair()[0]))
    assert list(keyring.authorized_directory.iterdir()) == []


def test_two_who_make_it_at_once_get_the_same(tmp_path: Path) -> None:
    keyrings = [Keyring(tmp_path / "keys") for _ in range(8)]
    together, found = threading.Barrier(8), []

    def make(keyring: Keyring) -> None:
        together.wait()
        keyring.create()
        found.append((keyring.server(), keyring.http_token()))

    threads = [threading.Thread(target=make, args=(keyring,)) for keyring in keyrings]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8 and len(set(found)) == 1


def test_the_default_is_in_the_users_configuration(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert default_directory() == tmp_path / "rankd" / "keys"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_directory() == tmp_path / ".config" / "rankd" / "keys"
