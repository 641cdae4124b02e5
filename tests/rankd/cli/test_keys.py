import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from rankd.auth import Authority, Keyring
from rankd.cli import app
from rankd.quota import Quota
from rankd_client.keys import Key, load_key


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANKD_KEYS", str(tmp_path / "keys"))
    monkeypatch.delenv("RANKD_KEY", raising=False)


def keys(*arguments: str, code: int = 0) -> Result:
    """`rankd keys ARGUMENTS`; no secret may stand in what it prints."""
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == code, result.output
    secrets = [load_key(path).secret for path in Path().rglob("*.key") if path.is_file() and path.name != "server.key"]
    if Keyring(Path("keys")).exists:
        secrets += [Keyring(Path("keys")).server()[1], Keyring(Path("keys")).http_token()]
    assert not any(secret in result.output for secret in secrets)
    return result


def granted(key: Key) -> tuple[str, str, frozenset[str], Quota]:
    grant = Authority(Keyring(Path("keys"))).find_key(key.public)
    assert grant is not None
    return grant.name, grant.namespace, grant.rights, grant.quota


def test_new_makes_all_that_is_needed() -> None:
    shown = keys("new", "alice", "--namespace", "team", "--max-runs", "3").stdout
    key = load_key("alice.key")
    assert (key.name, key.namespace) == ("alice", "team")
    assert key.server == Keyring(Path("keys")).server()[0]
    assert granted(key) == ("alice", "team", frozenset({"push", "subscribe"}), Quota(max_runs=3))
    assert "rankd serve --keys" in shown and f"RANKD_KEY={Path.cwd() / 'alice.key'}" in shown
    assert "made a keyring" not in keys("new", "bob", "--rights", "admin", "-o", "b.key").stdout
    assert granted(load_key("b.key"))[2] == frozenset({"admin"})
    assert Path("alice.key").stat().st_mode & 0o777 == 0o600


def test_a_pair_that_its_owner_makes_himself() -> None:
    keys("new", "alice")
    keys("new", "bob", "--unauthorized", "--server", "keys/server.pub", "--namespace", "lab")
    assert Keyring(Path("keys")).names() == ["alice"]
    key = load_key("bob.key")
    assert key.secret not in Path("bob.pub").read_text()
    assert "made for the namespace 'lab'" in keys("authorize", "bob.pub", "--namespace", "other", code=2).stderr
    keys("authorize", "bob.pub", "--rights", "subscribe", "--max-disk-bytes", "1000")
    assert granted(key) == ("bob", "lab", frozenset({"subscribe"}), Quota(max_disk_bytes=1000))


def test_list_shows_them_and_what_is_broken() -> None:
    assert keys("list").stdout == ""
    keys("new", "alice", "--namespace", "team", "--max-bytes", "7")
    keys("new", "bob")
    assert keys("list").stdout.startswith("alice: push,subscribe in namespace team max_bytes=7, since ")
    Path("keys/authorized/bob.json").write_text("\x1b[31m")
    shown = keys("list", code=1).stdout
    assert "bob: " in shown and "holds no JSON" in shown and "\x1b" not in shown
    alice, bob = [json.loads(line) for line in keys("list", "--json", code=1).stdout.splitlines()]
    assert alice["public"] == load_key("alice.key").public and alice["rights"] == ["push", "subscribe"]
    assert alice["quota"] == {"max_runs": None, "max_bytes": 7, "max_disk_bytes": None} and "secret" not in alice
    assert set(bob) == {"name", "error"}


def test_revoke() -> None:
    keys("new", "alice")
    authority = Authority(Keyring(Path("keys")))
    assert keys("revoke", "alice").stdout == "revoked alice\n"
    assert len(authority.refresh()) == 1
    assert "no key 'alice' is authorized" in keys("revoke", "alice", code=1).stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["new", "a b"], "name 'a b'"),
        (["new", "../x"], "name '../x'"),
        (["new", "alice", "--namespace", "daemon"], "namespace 'daemon'"),
        (["new", "alice", "--namespace", "Team"], "namespace 'Team'"),
        (["new", "alice", "--rights", "push,root"], "expected some of push, subscribe, admin"),
        (["new", "alice", "--rights", ""], "expected some of push, subscribe, admin"),
        (["new", "alice", "--max-runs", "0"], "quota.max_runs=0"),
        (["new", "alice", "--unauthorized"], "go together"),
        (["new", "alice", "--server", "x"], "go together"),
        (["new", "alice", "-o", "taken.key"], "is there already"),
        (["revoke", "../server"], "name '../server'"),
        (["authorize", "taken.key"], "expected a client-public"),
    ],
)
def test_wrong_use_is_named_and_changes_nothing(arguments: list[str], expected: str) -> None:
    Path("taken.key").write_text('{"kind": "other"}')
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == 2 and expected in result.stderr
    assert not Path("keys").exists() and Path("taken.key").read_text() == '{"kind": "other"}'


def test_a_name_is_not_given_twice() -> None:
    keys("new", "alice")
    before = load_key("alice.key"), granted(load_key("alice.key"))
    assert "authorized already" in keys("new", "alice", "-o", "again.key", code=2).stderr
    assert not Path("again.key").exists()
    assert (load_key("alice.key"), granted(load_key("alice.key"))) == before


def test_a_key_that_could_not_be_written_is_not_authorized() -> None:
    keys("new", "alice", "-o", "nowhere/alice.key", code=1)
    assert Keyring(Path("keys")).names() == []


def test_of_a_pair_both_halves_are_written_or_none() -> None:
    keys("new", "alice")
    Path("bob.key").mkdir()
    keys("new", "bob", "--unauthorized", "--server", "keys/server.pub", code=1)
    assert not Path("bob.pub").exists()
    keys("new", "bob", "--unauthorized", "--server", "keys/server.pub", "-o", "b.key")
    before = Path("b.pub").read_text()
    keys("new", "bob", "--unauthorized", "--server", "keys/server.pub", "-o", "b.key", code=1)
    assert Path("b.pub").read_text() == before


def test_a_server_pub_that_others_could_have_changed_is_refused() -> None:
    keys("new", "alice")
    Path("keys/server.pub").chmod(0o666)
    assert "mode 0666" in keys("new", "bob", "--unauthorized", "--server", "keys/server.pub", code=2).stderr
    assert not Path("bob.key").exists()
