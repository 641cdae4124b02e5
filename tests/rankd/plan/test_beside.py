import asyncio
import threading
from pathlib import Path

import pytest

from rankd.config import serve_config
from rankd.daemon import Daemon
from rankd.plan import MeasureConfig, Planner, keep_reviewed


def planner() -> Planner:
    return Planner(MeasureConfig(), lambda: 1, lambda: "cpu", lambda: 0.0, 100)


async def test_reviews_run_on_another_thread_while_the_loop_turns() -> None:
    plan, inside, go_on = planner(), asyncio.Event(), threading.Event()
    loop, threads = asyncio.get_running_loop(), []

    def revise(now: float) -> None:
        threads.append(threading.current_thread())
        loop.call_soon_threadsafe(inside.set)
        assert go_on.wait(60)

    plan.revise = revise  # type: ignore[method-assign]
    reviews = asyncio.create_task(keep_reviewed(plan, 0.001))
    await asyncio.wait_for(inside.wait(), 60)
    assert threads != [threading.current_thread()] and len(threads) == 1, "one at a time"
    go_on.set()
    reviews.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reviews


async def test_what_goes_wrong_in_a_review_is_raised() -> None:
    plan = planner()

    def revise(now: float) -> None:
        raise ZeroDivisionError("a fault of ours")

    plan.revise = revise  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        await asyncio.wait_for(keep_reviewed(plan, 0.001), 60)


async def test_and_ends_the_daemon(socket_dir: Path) -> None:
    limits = {"heartbeat_seconds": 0.01}
    daemon = Daemon(serve_config({"url": f"ipc://{socket_dir}", "http": "off", "device": "cpu", "limits": limits}))

    def revise(now: float) -> None:
        raise ZeroDivisionError("a fault of ours")

    daemon.planner.revise = revise  # type: ignore[method-assign]
    with pytest.raises(Exception, match="TaskGroup") as caught:
        await asyncio.wait_for(daemon.run(lambda ready: None), 60)
    assert [type(error) for error in getattr(caught.value, "exceptions", ())] == [ZeroDivisionError]


async def test_what_is_not_due_is_not_reviewed() -> None:
    plan = planner()
    plan.review(asyncio.get_running_loop().time())
    before = plan._next_review
    reviews = asyncio.create_task(keep_reviewed(plan, 0.0))
    for _ in range(20):
        await asyncio.sleep(0)
    reviews.cancel()
    assert plan._next_review == before
