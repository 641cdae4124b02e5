"""flush() waits until a daemon has dealt with what was pushed, in whichever way: here one that is worked by hand."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from absent_daemon import Make
from link_ends import PATIENCE_SECONDS, Router

from rankd_client.wire import Ack, Heartbeat, Message, Refusal, Reported


@pytest.fixture
def router(tmp_path: Path) -> Iterator[Router]:
    router = Router(f"ipc://{tmp_path}/push.sock")
    yield router
    router.close()


@pytest.mark.parametrize(
    ("outcome", "num_dropped"),
    [
        (Ack("recorded", "w", 3), 0),
        (Ack("superseded", "w", 3, by_step=4), 0),
        (Refusal("measure_failed", "no memory", "w", 3), 1),
    ],
)
@pytest.mark.parametrize("is_reported", [False, True])
def test_it_waits_for_every_outcome_and_what_was_refused_is_counted(
    make: Make, router: Router, outcome: Message, num_dropped: int, is_reported: bool
) -> None:
    client = make(echo=False)
    if is_reported:
        client.push_measurements({"w": {"effective_rank": 1.0}}, 3)
    else:
        client.push({"w": torch.ones(2, 2)}, 3)
    router.welcome()
    sent = router.receive()
    assert isinstance(sent, Reported) == is_reported
    assert not client.flush(0.01), "it is on its way"
    router.send(outcome)
    assert client.flush(PATIENCE_SECONDS)
    assert client.stats.num_dropped == num_dropped and client.num_errors == 0


def test_it_does_not_wait_for_answers_that_are_there(
    make: Make, router: Router, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The link would let them gather."""
    monkeypatch.setattr("rankd_client.link.loop._GATHER_SECONDS", 6 * PATIENCE_SECONDS)
    client = make(echo=False)
    client.push({"w": torch.ones(2, 2)}, 3)
    router.welcome()
    router.receive()
    time.sleep(0.2)  # what the link is still woken by has passed
    router.send(Heartbeat(), Ack("recorded", "w", 3))
    time.sleep(0.2)
    assert client.flush(PATIENCE_SECONDS)
