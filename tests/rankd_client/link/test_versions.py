"""Links that speak version 2, to daemons that do and that do not."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from link_ends import MIB, PATIENCE_SECONDS, Router, Setup

from rankd_client.wire import LOCAL_VERSION, SCALED_VERSION, Hello, Refusal, Welcome


@pytest.fixture
def setup(address: str) -> Iterator[Setup]:
    setup = Setup(address, version=SCALED_VERSION)
    yield setup
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)


def test_a_daemon_that_speaks_it_is_served(router: Router, setup: Setup) -> None:
    setup.put("w", 1)
    assert router.welcome(version=SCALED_VERSION).version == SCALED_VERSION
    assert router.chunk().layer == "w"


def test_an_older_daemon_gets_no_weights_and_the_user_hears_once_what_to_do(
    address: str, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    old = Router(address)
    setup.put("w", 1)
    with caplog.at_level(logging.WARNING, "rankd_client"):
        for _ in range(4):
            assert isinstance(old.receive(), Hello)
            old.send(Refusal("unknown_version", "version 2; this side speaks 1"))
        old.close()
        new = Router(address)  # it was updated
        new.welcome(version=SCALED_VERSION)
        assert new.chunk().layer == "w"
        new.close()
    (told,) = (line for record in caplog.records if "unknown_version" in (line := record.getMessage()))
    assert 'update it, or push with dtype="bfloat16"' in told and "training goes on" in told


def test_a_welcome_of_another_version_is_none(router: Router, setup: Setup) -> None:
    setup.put("w", 1)
    assert isinstance(router.receive(), Hello)
    router.send(Welcome("00" * 8, 64 * MIB, 4 * MIB, 60.0))
    assert router.silent() and not setup.link.connected


def test_others_are_not_told_to_send_something_else(
    address: str, caplog: pytest.LogCaptureFixture, router: Router
) -> None:
    plain = Setup(address)
    with caplog.at_level(logging.WARNING, "rankd_client"):
        assert isinstance(router.receive(), Hello)
        router.send(Refusal("unknown_version", "version 1; this side speaks 3"))
        assert isinstance(router.receive(), Hello)
    assert "unknown_version" in caplog.text and "bfloat16" not in caplog.text
    plain.link.stop(0.0)
    plain.link.join(PATIENCE_SECONDS)


def test_an_older_daemon_is_asked_again_at_once_in_the_version_that_is_needed(
    address: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = Router(address)
    setup = Setup(address, newest=LOCAL_VERSION)
    content = setup.put("w", 1)
    with caplog.at_level(logging.WARNING, "rankd_client"):
        first = old.receive()
        assert isinstance(first, Hello) and first.version == LOCAL_VERSION
        old.send(Refusal("unknown_version", "version 3; this side speaks 1 and 2"))
        assert old.welcome().version == 1
        assert bytes(old.chunk().payload) == content
        assert setup.link.version == 1
        old.send(Refusal("no_hello", "another daemon has taken its place"))
        second = old.receive()
        assert isinstance(second, Hello) and second.version == LOCAL_VERSION
    assert not caplog.records and setup.link.num_refused == 0
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)
    old.close()
