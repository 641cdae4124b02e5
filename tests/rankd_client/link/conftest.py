"""What the tests of the link share: a real ROUTER, a link to it, and short waits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from link_ends import PATIENCE_SECONDS, ArenaDoor, Router, Setup

from rankd_client.link import conversation


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversation, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(conversation, "HELLO_SECONDS", 2.0)


@pytest.fixture
def address(tmp_path: Path) -> str:
    return f"ipc://{tmp_path}/push.sock"


@pytest.fixture
def router(address: str) -> Iterator[Router]:
    router = Router(address)
    yield router
    router.close()


@pytest.fixture
def setup(address: str) -> Iterator[Setup]:
    setup = Setup(address)
    yield setup
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)
    assert not setup.link._thread.is_alive()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[ArenaDoor]:
    door = ArenaDoor(tmp_path / "arena.sock")
    yield door
    door.close()
