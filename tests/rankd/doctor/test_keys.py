from pathlib import Path

import pytest

from rankd.auth import Grant, Keyring
from rankd.auth.keyring import new_pair
from rankd.doctor.keys import check_keys


def test_no_keyring_is_a_problem_where_one_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert [finding.ok for finding in check_keys(None)] == [True]
    (finding,) = check_keys(tmp_path / "keys")
    assert not finding.ok and "rankd keys new" in finding.advice


def test_keys_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    keyring.create()
    for name in ("alice", "bob"):
        keyring.authorize(Grant(name, new_pair()[0]))
    (finding,) = check_keys(keyring.directory)
    assert finding.ok and "2 keys are authorized" in finding.text
    (keyring.authorized_directory / "bob.json").write_text("{}")
    first, second = check_keys(keyring.directory)
    assert first.ok and not second.ok and "bob.json" in second.text
    (keyring.directory / "server.key").chmod(0o644)
    (finding,) = check_keys(keyring.directory)
    assert not finding.ok and "server.key" in finding.text


def test_a_missing_token_is_not_made(tmp_path: Path) -> None:
    keyring = Keyring(tmp_path / "keys")
    keyring.create()
    token = keyring.directory / "http.token"
    token.unlink()
    assert all(finding.ok for finding in check_keys(keyring.directory)) and not token.exists()
