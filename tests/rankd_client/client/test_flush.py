"""flush() waits until a daemon has dealt with what was pushed, in whichever way: here one that is worked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from absent_daemon import Make
from link_ends import PATIENCE_SECONDS, Router

from rankd_client.wire import Ack, Message, Refusal, Reported


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
