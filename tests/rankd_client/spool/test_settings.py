"""Where a spool is and how large it may get."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankd_client import Client
from rankd_client.config import SPOOL_BYTES


@pytest.fixture(autouse=True)
def _environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("RANKD_SPOOL", "RANKD_SPOOL_BYTES", "RANKD_RUN", "RANKD_EVERY_STEPS", "RANKD_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RANKD_MODE", "offline")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


def test_the_defaults(tmp_path: Path) -> None:
    config = Client().config
    assert (config.spool, config.spool_bytes) == (str(tmp_path / "rankd" / "spool"), SPOOL_BYTES)


def test_what_is_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RANKD_SPOOL", "here/it is")
    monkeypatch.setenv("RANKD_SPOOL_BYTES", "1000")
    config = Client().config
    assert (config.spool, config.spool_bytes) == (str(tmp_path / "here" / "it is"), 1000)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("RANKD_SPOOL", "ipc:///run/rankd", "the path of a directory"),
        ("RANKD_SPOOL", "~nobody-of-this-name/x", "the path of a directory"),
        ("RANKD_SPOOL_BYTES", "0", "an integer of at least 1"),
        ("RANKD_SPOOL_BYTES", "10GiB", "a number of bytes"),
        ("RANKD_SPOOL_BYTES", "-5", "a number of bytes"),
        ("RANKD_SPOOL_BYTES", "9" * 5000, "a number of bytes"),
    ],
)
def test_a_wrong_one_is_named_in_this_mode_alone(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"{name}=.*expected") as caught:
        Client()
    assert expected in str(caught.value) and value in str(caught.value)
    monkeypatch.setenv("RANKD_MODE", "online")
    assert Client().config.spool == ""
