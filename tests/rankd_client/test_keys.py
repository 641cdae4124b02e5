import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import zmq
import zmq.utils.z85
from hypothesis import given
from hypothesis import strategies as st

from rankd_client import Client, keys
from rankd_client.keys import Key, KeyFileError, check_key, find_key, load_key

PUBLIC, SECRET = (key.decode() for key in zmq.curve_keypair())
SERVER = zmq.curve_keypair()[0].decode()
CONTENT = {
    "kind": "client-key",
    "version": 1,
    "name": "alice",
    "namespace": "team",
    "public": PUBLIC,
    "secret": SECRET,
    "server": SERVER,
}


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANKD_KEY", "RANKD_URL", "RANKD_MODE"):
        monkeypatch.delenv(name, raising=False)


def written(path: Path, content: Any = None, mode: int = 0o600) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content or CONTENT))
    path.chmod(mode)
    return path


def test_a_key_is_read(tmp_path: Path) -> None:
    assert load_key(written(tmp_path / "alice.key")) == Key("alice", "team", PUBLIC, SECRET, SERVER)


def test_its_secret_is_never_shown(tmp_path: Path) -> None:
    assert SECRET not in repr(load_key(written(tmp_path / "alice.key")))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o602, 0o610, 0o601, 0o777])
def test_a_file_that_others_can_read_is_refused_naming_its_mode(tmp_path: Path, mode: int) -> None:
    path = written(tmp_path / "alice.key", mode=mode)
    with pytest.raises(KeyFileError, match=f"mode {mode:04o}.*expected {mode & 0o700:04o}"):
        load_key(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_a_file_of_another_user_is_refused(tmp_path: Path) -> None:
    path = written(tmp_path / "alice.key")
    os.chown(path, 12345, -1)
    with pytest.raises(KeyFileError, match="belongs to user id 12345"):
        load_key(path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link.key").symlink_to(written(tmp_path / "alice.key"))
    os.mkfifo(tmp_path / "fifo.key", 0o600)
    (tmp_path / "folder.key").mkdir(0o700)
    for name, why in (
        ("link.key", "symbolic link"),
        ("fifo.key", "not a regular file"),
        ("folder.key", "directory|regular"),
        ("none.key", "No such file"),
    ):
        with pytest.raises(KeyFileError, match=why):
            load_key(tmp_path / name)
    with pytest.raises(KeyFileError, match="no path"):
        load_key("a\0b")


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ("", "holds no JSON"),
        ("{", "holds no JSON"),
        ("[" * 50_000, "holds no JSON"),
        ('{"kind": NaN', "holds no JSON"),
        ("[]", "is list; expected a client-key"),
        ({"kind": "server-key"}, "is server-key; expected a client-key"),
        ({"kind": "\x1b[31m"}, "is something else"),
        ({"kind": None}, "is something else"),
        ({"version": 2}, "version '2'; expected 1"),
        ({"version": True}, "version 'True'; expected 1"),
        ({"name": ""}, "name ''"),
        ({"name": "a/b"}, "name 'a/b'"),
        ({"name": "x" * 65}, "name 'x+'"),
        ({"name": "a\n"}, r"name 'a\\n'"),
        ({"name": None}, "name None"),
        ({"namespace": "Team"}, "namespace 'Team'"),
        ({"namespace": "daemon"}, "namespace 'daemon'"),
        ({"namespace": None}, "namespace None"),
        ({"public": PUBLIC[:39]}, "public is no key"),
        ({"secret": SECRET + "0"}, "secret is no key"),
        ({"secret": "~" * 40}, "secret is no key"),
        ({"server": "#" * 40}, "server is no key"),  # beyond 32 bits each
        ({"server": 7}, "server is no key"),
    ],
)
def test_a_broken_file_is_named_and_no_secret_with_it(tmp_path: Path, change: Any, why: str) -> None:
    path = written(tmp_path / "alice.key", change if isinstance(change, str) else {**CONTENT, **change})
    if change == "":
        path.write_text("")
    with pytest.raises(KeyFileError, match=why) as caught:
        load_key(path)
    assert "alice.key" in str(caught.value) and SECRET not in str(caught.value) and SECRET[:39] not in str(caught.value)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = written(tmp_path / "alice.key", " " * (keys.MAX_FILE_BYTES + 1))
    with pytest.raises(KeyFileError, match="more than"):
        load_key(path)


@given(st.binary(min_size=32, max_size=32))
def test_every_key_of_32_bytes_is_one(raw: bytes) -> None:
    text = zmq.utils.z85.encode(raw).decode()
    assert check_key("x", "public", text) == text


@given(st.binary(max_size=200))
def test_any_bytes_give_a_key_or_an_error(content: bytes) -> None:
    with pytest.raises(KeyFileError):
        keys.parse_file(Path("x.key"), content, "client-key")


def test_the_argument_goes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, other = written(tmp_path / "a.key"), written(tmp_path / "b.key", {**CONTENT, "name": "bob"})
    address = "tcp://127.0.0.1:7"
    assert find_key(None, address) is None
    monkeypatch.setenv("RANKD_KEY", str(other))
    assert (find_key(None, address) or pytest.fail()).name == "bob"
    assert (find_key(ours, address) or pytest.fail()).name == "alice"
    with pytest.raises(KeyFileError, match="path of a key file"):
        find_key(7, address)  # type: ignore[arg-type]


def test_a_key_for_ipc_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANKD_KEY", str(tmp_path / "none.key"))
    assert Client(endpoint=f"ipc://{tmp_path}").config.key is None
    monkeypatch.setenv("RANKD_MODE", "disabled")
    assert Client(endpoint="tcp://127.0.0.1:7").config.key is None


def test_a_client_that_needs_its_key_names_what_is_wrong_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "alice.key", mode=0o644)
    monkeypatch.setenv("RANKD_KEY", str(path))
    with pytest.raises(ValueError, match="mode 0644"):
        Client(endpoint="tcp://127.0.0.1:7")
    path.chmod(stat.S_IRUSR)
    with Client(endpoint="tcp://127.0.0.1:7", key=path) as client:
        assert client.config.key == Key("alice", "team", PUBLIC, SECRET, SERVER)


def test_runs_have_their_full_name() -> None:
    assert Key("a", "team", PUBLIC, SECRET, SERVER).full_run("lm") == "@team/lm"
    assert Key("a", "team", PUBLIC, SECRET, SERVER).full_run("@other/lm") == "@other/lm"
    assert Key("a", "", PUBLIC, SECRET, SERVER).full_run("lm") == "lm"


def test_a_key_is_applied_to_tcp_alone() -> None:
    key = Key("a", "team", PUBLIC, SECRET, SERVER)
    with zmq.Context() as context, context.socket(zmq.DEALER) as socket:
        key.apply(socket, "ipc:///nowhere/push.sock")
        assert socket.getsockopt(zmq.MECHANISM) == zmq.NULL
        key.apply(socket, "tcp://127.0.0.1:7")
        assert socket.getsockopt(zmq.MECHANISM) == zmq.CURVE
