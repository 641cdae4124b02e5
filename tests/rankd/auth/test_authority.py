import json
import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from rankd.auth import OWNER, Authority, Grant, Keyring
from rankd.auth import authority as module
from rankd.auth.keyring import new_pair
from rankd.quota import Quota
from rankd_client.keys import KeyFileError


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    keyring = Keyring(tmp_path / "keys")
    keyring.create()
    return keyring


def allow(keyring: Keyring, name: str, namespace: str = "", quota: Quota | None = None, **more: Any) -> Grant:
    grant = Grant(name, new_pair()[0], namespace, quota=quota or Quota(), **more)
    keyring.authorize(grant, replace=True)
    return grant


def edit(keyring: Keyring, name: str, **change: Any) -> None:
    path = keyring.authorized_directory / f"{name}.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))


def test_without_keys_nobody_is_found_and_none_are_asked_for() -> None:
    authority = Authority(None)
    assert not authority.has_keys and authority.refresh() == set()
    assert authority.find(OWNER.user_id) is None and authority.quota("") == Quota()


def test_a_keyring_that_cannot_be_used_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match="keys"):
        Authority(Keyring(tmp_path / "keys"))


def test_keys_come_and_go_while_it_runs(keyring: Keyring) -> None:
    authority = Authority(keyring)
    alice = allow(keyring, "alice", "team")
    assert authority.find_key(alice.public_key) is None
    assert authority.refresh() == set()
    assert authority.find_key(alice.public_key) == authority.find(alice.user_id) == alice
    keyring.revoke("alice")
    assert authority.refresh() == {alice.user_id}
    assert authority.find_key(alice.public_key) is None and authority.find(alice.user_id) is None
    assert authority.refresh() == set()


def test_a_new_key_of_the_same_name_is_another(keyring: Keyring) -> None:
    old = allow(keyring, "alice")
    authority = Authority(keyring)
    new = allow(keyring, "alice")
    assert authority.refresh() == {old.user_id}
    assert authority.find(old.user_id) is None and authority.find(new.user_id) == new


@pytest.mark.parametrize("change", [{"rights": ["push"]}, {"namespace": "other"}])
def test_other_rights_are_told(keyring: Keyring, change: dict[str, Any]) -> None:
    alice = allow(keyring, "alice", "team")
    authority = Authority(keyring)
    edit(keyring, "alice", **change)
    assert authority.refresh() == {alice.user_id}
    assert authority.find(alice.user_id) not in (None, alice)


def test_another_quota_cuts_nobody_off(keyring: Keyring) -> None:
    allow(keyring, "alice", "team")
    authority = Authority(keyring)
    edit(keyring, "alice", quota={"max_runs": 5})
    assert authority.refresh() == set()
    assert authority.quota("team") == Quota(max_runs=5)


def test_the_smallest_limit_of_any_key_is_its_namespaces(keyring: Keyring) -> None:
    allow(keyring, "alice", "team", Quota(max_runs=5, max_bytes=100))
    allow(keyring, "bob", "team", Quota(max_runs=3, max_disk_bytes=7))
    allow(keyring, "carol", "other", Quota(max_runs=1))
    authority = Authority(keyring)
    assert authority.quota("team") == Quota(3, 100, 7)
    assert authority.quota("") == Quota()


def test_a_broken_file_costs_only_its_own_key_and_is_told_once(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    alice, bob = allow(keyring, "alice"), allow(keyring, "bob")
    authority = Authority(keyring)
    caplog.clear()
    (keyring.authorized_directory / "alice.json").write_text("{")
    (keyring.authorized_directory / "dave.json").symlink_to("bob.json")
    assert authority.refresh() == {alice.user_id}
    assert authority.refresh() == set()
    warnings = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2 and "alice.json" in warnings[0] and "dave.json" in warnings[1]
    assert authority.find(bob.user_id) == bob
    keyring.authorize(alice, replace=True)
    authority.refresh()
    assert authority.find(alice.user_id) == alice


def test_one_key_under_two_names_is_the_firsts(keyring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    alice = allow(keyring, "alice")
    text = (keyring.authorized_directory / "alice.json").read_text()
    path = keyring.authorized_directory / "bob.json"
    path.write_text(text.replace("alice", "bob"))
    path.chmod(0o600)
    authority = Authority(keyring)
    assert authority.find_key(alice.public_key) == alice
    assert "bob.json has the public key of alice" in caplog.text


def test_a_system_out_of_files_revokes_nobody(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alice = allow(keyring, "alice")
    authority = Authority(keyring)
    edit(keyring, "alice", rights=["push"])

    def too_many(*args: Any, **kwargs: Any) -> None:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", too_many)
        assert authority.refresh() == set() == authority.refresh()
        assert authority.find(alice.user_id) == alice
        patch.setattr(module, "key_paths", too_many)
        assert authority.refresh() == set() == authority.refresh()
        assert authority.find(alice.user_id) == alice
    assert caplog.text.count("Too many open files") == 2
    assert authority.refresh() == {alice.user_id}  # now it could be read


def test_a_file_that_became_a_link_or_that_is_not_to_be_read_grants_nothing(keyring: Keyring) -> None:
    alice = allow(keyring, "alice")
    authority = Authority(keyring)
    path = keyring.authorized_directory / "alice.json"
    path.rename(keyring.directory / "elsewhere")
    path.symlink_to(keyring.directory / "elsewhere")
    assert authority.refresh() == {alice.user_id}


@pytest.mark.parametrize(("mode", "granted"), [(0o644, True), (0o660, False), (0o602, False), (0o666, False)])
def test_what_others_can_write_to_grants_nothing_and_what_they_can_read_does(
    keyring: Keyring, mode: int, granted: bool
) -> None:
    alice = allow(keyring, "alice")
    authority = Authority(keyring)
    (keyring.authorized_directory / "alice.json").chmod(mode)
    assert authority.refresh() == (set() if granted else {alice.user_id})
    assert (authority.find(alice.user_id) is not None) == granted


def test_without_its_folder_nobody_is_authorized(keyring: Keyring) -> None:
    alice = allow(keyring, "alice")
    authority = Authority(keyring)
    keyring.revoke("alice")
    keyring.authorized_directory.rmdir()
    assert authority.refresh() == {alice.user_id}
    assert keyring.names() == []


def test_files_that_did_not_change_are_not_read_again(keyring: Keyring, monkeypatch: pytest.MonkeyPatch) -> None:
    alice = allow(keyring, "alice")
    authority = Authority(keyring)
    read: list[Path] = []

    def counted(path: Path) -> bytes:
        read.append(path)
        return path.read_bytes()

    monkeypatch.setattr(module, "read_file", counted)
    assert authority.refresh() == set() and read == []
    allow(keyring, "bob")
    authority.refresh()
    assert [path.name for path in read] == ["bob.json"] and authority.find(alice.user_id) == alice


def test_authorizing_and_revoking_while_it_looks(keyring: Keyring, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever it meets half done, it neither fails nor takes a file for broken, nor touches another's key."""
    caplog.set_level(logging.WARNING)
    steady = allow(keyring, "steady", "team")
    authority = Authority(keyring)
    done = threading.Event()

    def churn(name: str) -> None:
        for _ in range(60):
            allow(keyring, name, "team")
            keyring.revoke(name)

    def lookup() -> None:
        while not done.is_set():
            assert authority.find(steady.user_id) == steady
            assert authority.find_key(steady.public_key) == steady

    writers = [threading.Thread(target=churn, args=(f"churn{i}",)) for i in range(3)]
    reader = threading.Thread(target=lookup)
    for thread in [*writers, reader]:
        thread.start()
    revoked: set[str] = set()
    while any(thread.is_alive() for thread in writers):
        revoked |= authority.refresh()
    done.set()
    for thread in [*writers, reader]:
        thread.join()
    authority.refresh()
    assert steady.user_id not in revoked and authority.find(steady.user_id) == steady
    assert keyring.names() == ["steady"] and caplog.records == []
