"""Reviews of the plan beside everything else."""

from __future__ import annotations

import asyncio
import time

from rankd.plan.planner import Planner


async def keep_reviewed(planner: Planner, seconds: float) -> None:
    """Looks each so many seconds whether a review is due. With very many layers it takes a second or two: on a thread,
    so that the loop turns meanwhile. What goes wrong in it is raised here."""
    while True:
        await asyncio.sleep(seconds)
        if planner.due(now := time.monotonic()):
            await asyncio.to_thread(planner.revise, now)
