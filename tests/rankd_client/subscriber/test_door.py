"""Subscribers whom a real daemon does not let in: they say so, and need no restart once it does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from publisher import TIMEOUT
from typer.testing import CliRunner

from rankd.cli import app
from rankd_client import Client
from rankd_client.subscriber import AsyncSubscription, SubscriptionError, asubscribe, door, sockets, subscribe
from rankd_client.subscriber.sockets import Sockets


def keys(*arguments: str) -> None:
    result = CliRunner().invoke(app, ["keys", *arguments])
    assert result.exit_code == 0, result.output


async def until(items: AsyncSubscription, holds: Callable[[Sockets], bool]) -> None:
    """Looks each time the subscription has read what came, or its clock ticked."""
    sockets, turned = items._sockets, asyncio.Event()
    handle = sockets.handle

    def handle_and_tell(ready: Any) -> None:
        handle(ready)
        turned.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sockets, "handle", handle_and_tell)
        async with asyncio.timeout(TIMEOUT):
            while not holds(sockets):
                turned.clear()
                await turned.wait()


@pytest.fixture
def ring(tmp_path: Path) -> list[str]:
    """The option that names a keyring in which alice may do all of her namespace."""
    ring = ["--keys", str(tmp_path / "ring")]
    keys("new", "alice", "--namespace", "team", *ring, "-o", str(tmp_path / "alice.key"))
    return ring


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sockets, "TICK_SECONDS", 0.2)


def addresses(daemon: Any, key: Path | None) -> dict[str, Any]:
    return {"alerts": daemon.ready["alerts"], "query": daemon.ready["query"], "key": key}


@pytest.mark.usefixtures("quick")
def test_without_a_key_or_with_one_that_is_revoked_it_ends_with_the_reason(
    serve: Callable[..., Any], ring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANKD_KEY", raising=False)
    daemon = serve("--url", "tcp://127.0.0.1:0", *ring)
    address = daemon.ready["query"]
    with pytest.raises(SubscriptionError, match=f"the daemon at {address} did not accept us without a key"):
        next(subscribe(**addresses(daemon, None), timeout=TIMEOUT))
    alice = subscribe(**addresses(daemon, tmp_path / "alice.key"), timeout=TIMEOUT)
    keys("revoke", "alice", *ring)
    # A question that is under way when the key goes is still answered: with the refusal of it.
    with pytest.raises(
        SubscriptionError, match=f"daemon at {address} did not accept the key alice|not_allowed: key 'a"
    ):
        next(alice)
    assert alice.closed


@pytest.mark.usefixtures("quick")
async def test_a_time_that_is_over_before_it_is_sure_is_an_error_all_the_same(
    serve: Callable[..., Any], ring: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANKD_KEY", raising=False)
    monkeypatch.setattr(door, "NUM_LOOKS", 1000)
    daemon = serve("--url", "tcp://127.0.0.1:0", *ring)
    items = asubscribe(**addresses(daemon, None), timeout=TIMEOUT)
    waiting = asyncio.create_task(anext(items))
    await until(items, lambda sockets: bool(sockets._door.suspicion))
    items._sockets._clock = lambda: time.monotonic() + TIMEOUT
    with pytest.raises(SubscriptionError, match="without a key"):
        await waiting
    assert items.closed


@pytest.mark.usefixtures("quick")
def test_a_daemon_without_keys_is_not_taken_for_the_one_of_the_key(
    serve: Callable[..., Any], ring: list[str], tmp_path: Path
) -> None:
    daemon = serve("--url", "tcp://127.0.0.1:0")
    with pytest.raises(SubscriptionError, match="has no keys, so nothing shows that it is the one of the key alice"):
        next(subscribe(**addresses(daemon, tmp_path / "alice.key"), timeout=TIMEOUT))


@pytest.mark.usefixtures("quick")
async def test_a_key_that_is_authorized_later_needs_no_restart(
    serve: Callable[..., Any], ring: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(door, "NUM_LOOKS", 1000)
    bob = tmp_path / "bob.key"
    server = ["--server", str(tmp_path / "ring" / "server.pub")]
    keys("new", "bob", "--unauthorized", *server, "--namespace", "team", "-o", str(bob))
    daemon = serve("--url", "tcp://127.0.0.1:0", *ring)
    items = asubscribe(**addresses(daemon, bob), timeout=TIMEOUT)
    waiting = asyncio.create_task(anext(items))
    await until(items, lambda sockets: bool(sockets._door.suspicion))
    keys("authorize", str(tmp_path / "bob.pub"), *ring)
    await until(items, lambda sockets: not sockets._door.suspicion)
    with Client("lm", daemon.ready["push"], key=str(tmp_path / "alice.key"), echo=False, max_overhead=None) as client:
        client.push({"w": torch.full((2, 2), float("nan"))}, step=1)
        assert (await waiting).run == "@team/lm"
    await items.aclose()
