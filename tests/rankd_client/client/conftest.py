"""What the tests of the client share: clients that find nobody."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from absent_daemon import Make

from rankd_client import Client


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Clients of a daemon that is not there."""
    for name in ("RANKD_MODE", "RANKD_RUN", "RANKD_EVERY_STEPS", "RANKD_ECHO", "RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    clients = []

    def build(**options: Any) -> Client:
        client = Client("run", f"ipc://{tmp_path}", **{"max_overhead": None, "strict": True, **options})
        clients.append(client)
        return client

    yield build
    for client in clients:
        client.close()
