"""From other threads into the event loop, without losing what goes wrong there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class Crossing:
    """To be made in a running event loop. asyncio only logs what a callback raises and goes on, with our state half
    changed; a mistake of ours is to end the process."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._failed: asyncio.Future[None] = self._loop.create_future()

    def call(self, function: Callable[..., Any], *values: Any) -> None:
        """From any thread: have the loop call `function` with `values`, in the order of these calls."""
        self._loop.call_soon_threadsafe(self._call, function, values)

    async def watch(self) -> None:
        """Raises what a call raised; never ends otherwise."""
        await self._failed

    def _call(self, function: Callable[..., Any], values: tuple[Any, ...]) -> None:
        try:
            function(*values)
        except Exception as error:
            if self._failed.done():
                raise
            self._failed.set_exception(error)
