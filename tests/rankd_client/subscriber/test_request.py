"""What a subscription subscribes to, by its key and run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rankd_client.keys import KeyFileError
from rankd_client.subscriber.request import check

KEY = {"kind": "client-key", "version": 1, "name": "me", "public": "0" * 40, "secret": "1" * 40, "server": "2" * 40}


def key_file(tmp_path: Path, namespace: str) -> Path:
    path = tmp_path / "me.key"
    path.write_text(json.dumps({**KEY, "namespace": namespace}))
    path.chmod(0o600)
    return path


def prefixes(
    run: str | None, key: Path | None, url: str = "tcp://10.0.0.1:7777", everybody: bool = False
) -> set[bytes]:
    request = check(url, run, None, ("alert", "measurement"), None, None, None, key)
    return set(request.prefixes(everybody))


def test_without_a_key_everybody_is_followed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKD_KEY", raising=False)
    assert prefixes(None, None) == {b"alert", b"measurement", b"heartbeat"}
    assert prefixes("lm", None) == {b"alert\0lm\0", b"measurement\0lm\0", b"heartbeat\0"}
    assert prefixes("@a/lm", None) == {b"alert@a\0lm\0", b"measurement@a\0lm\0", b"heartbeat@a\0"}


def test_a_key_follows_its_namespace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = key_file(tmp_path, "team-a")
    own = {b"alert@team-a\0", b"measurement@team-a\0", b"heartbeat@team-a\0"}
    assert prefixes(None, key) == own
    assert prefixes(None, key, everybody=True) == {b"alert", b"measurement", b"heartbeat"}
    assert prefixes("lm", key) == {b"alert@team-a\0lm\0", b"measurement@team-a\0lm\0", b"heartbeat@team-a\0"}
    assert prefixes("@b/lm", key) == {b"alert@b\0lm\0", b"measurement@b\0lm\0", b"heartbeat@b\0"}
    monkeypatch.setenv("RANKD_KEY", str(key))
    assert prefixes(None, None) == own


def test_a_key_of_the_common_namespace_follows_that(tmp_path: Path) -> None:
    assert prefixes(None, key_file(tmp_path, "")) == {b"alert\0", b"measurement\0", b"heartbeat\0"}


def test_over_ipc_a_key_is_not_read(tmp_path: Path) -> None:
    url = f"ipc://{tmp_path}"
    assert prefixes(None, tmp_path / "absent.key", url) == {b"alert", b"measurement", b"heartbeat"}


def test_a_key_file_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(KeyFileError, match=r"absent\.key"):
        prefixes(None, tmp_path / "absent.key")
