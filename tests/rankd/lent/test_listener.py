"""The arena socket against clients that do as they should, and against those that do not: nothing that they do ends
it, and no descriptor or mapping is left of them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from lending import SESSION, Caller, Memory, lend_of, num_mappings

from rankd.binding import bind_path
from rankd.config import Limits
from rankd.lent import ArenaListener, Lenders, listener
from rankd_client.wire import MAX_BLOCKS, Refusal, Taken, encode_handover

WAIT_SECONDS = 30.0


class Served:
    def __init__(self, directory: Path, **limits: int) -> None:
        self.path = directory / "arena.sock"
        self.counters: Counter[str] = Counter()
        self.lenders = Lenders(Limits(**limits), self.counters, "arena.sock")
        bound = bind_path(str(self.path), socket.SOCK_SEQPACKET)
        self.listener = ArenaListener(bound, self.lenders, Limits(**limits), self.counters)

    async def ask(self, caller: Caller, packet: Any, fds: Any = ()) -> Any:
        return await asyncio.to_thread(caller.ask, packet, fds)

    async def settled(self, num_connections: int) -> None:
        await self.until(lambda: self.listener.num_connections == num_connections)

    async def until(self, holds: Callable[[], bool]) -> None:
        """For what this very event loop does, in one of its next turns."""
        async with asyncio.timeout(WAIT_SECONDS):
            while not holds():  # noqa: ASYNC110  # each turn may bring it
                await asyncio.sleep(0)


@pytest.fixture
async def served(tmp_path: Path) -> AsyncIterator[Served]:
    files, mappings = num_files(), num_mappings()
    served = Served(tmp_path)
    yield served
    served.listener.close()
    assert num_files() <= files, "descriptors are left"
    assert num_mappings() <= mappings, "mappings are left"


def num_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


async def test_memory_is_taken_and_ends_with_its_connection(served: Served) -> None:
    token = served.lenders.invite(SESSION)
    memory, caller = Memory(), Caller(served.path)
    assert await served.ask(caller, lend_of(token, memory), [memory.fd]) == Taken(1)
    more = Memory()
    assert await served.ask(caller, lend_of(token, more, first_block=1), [more.fd]) == Taken(2)
    assert served.lenders.num_bytes == memory.size + more.size
    caller.close()
    await served.settled(0)
    assert served.lenders.num_bytes == 0
    for block in (memory, more):
        block.close()
    again, memory = Caller(served.path), Memory()  # as long as it is greeted, it may lend again
    assert await served.ask(again, lend_of(token, memory), [memory.fd]) == Taken(1)
    again.close()
    await served.settled(0)
    memory.close()


async def test_the_end_of_the_push_connection_hangs_up(served: Served) -> None:
    token = served.lenders.invite(SESSION)
    memory, caller = Memory(), Caller(served.path)
    assert await served.ask(caller, lend_of(token, memory), [memory.fd]) == Taken(1)
    served.lenders.dismiss(token)
    assert await asyncio.to_thread(caller.hear) is None
    caller.close()
    memory.close()


BAD_PACKETS = [
    b"\xc1",
    b"x" * 5000,
    encode_handover(Taken(1)),
    encode_handover(Refusal("busy", "")),
    encode_handover(lend_of("x", sizes=(4096,))),
]


@pytest.mark.parametrize("packet", BAD_PACKETS, ids=["no msgpack", "too long", "taken", "refusal", "unknown token"])
async def test_a_bad_packet_is_refused_and_its_descriptors_are_closed(served: Served, packet: bytes) -> None:
    memory, caller = Memory(), Caller(served.path)
    answer = await served.ask(caller, packet, [memory.fd] * 5)
    assert isinstance(answer, Refusal)
    assert await asyncio.to_thread(caller.hear) is None
    caller.close()
    memory.close()


@pytest.mark.parametrize("num_fds", [0, 2, MAX_BLOCKS, MAX_BLOCKS + 1, 200])
async def test_too_few_or_too_many_descriptors_are_refused_and_closed(served: Served, num_fds: int) -> None:
    token = served.lenders.invite(SESSION)
    memory, caller = Memory(), Caller(served.path)
    answer = await served.ask(caller, lend_of(token, memory), [memory.fd] * num_fds)
    assert isinstance(answer, Refusal) and answer.code == "bad_memory"
    caller.close()
    memory.close()


async def test_an_empty_packet_with_descriptors_leaves_none(served: Served) -> None:
    memory, caller = Memory(), Caller(served.path)
    caller.send(b"", [memory.fd] * 3)
    assert await asyncio.to_thread(caller.hear) is None
    caller.close()
    memory.close()


async def test_who_says_nothing_is_sent_away(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "SILENT_SECONDS", 0.05)
    caller = Caller(served.path)
    assert await asyncio.to_thread(caller.hear) is None
    caller.close()


async def test_who_lends_may_be_silent_for_as_long_as_it_likes(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener, "SILENT_SECONDS", 0.05)
    token = served.lenders.invite(SESSION)
    memory, caller = Memory(), Caller(served.path)
    assert await served.ask(caller, lend_of(token, memory), [memory.fd]) == Taken(1)
    silent = Caller(served.path)
    assert await asyncio.to_thread(silent.hear) is None  # its time was up after the other's would have been
    assert served.listener.num_connections == 1
    silent.close()
    caller.close()
    await served.settled(0)
    memory.close()


async def test_no_more_connections_than_the_limit(tmp_path: Path) -> None:
    served = Served(tmp_path, max_connections_per_peer=2)
    callers = [Caller(served.path) for _ in range(2)]
    await served.settled(2)
    third = Caller(served.path)
    answer = await asyncio.to_thread(third.hear)
    assert isinstance(answer, Refusal) and answer.code == "too_much_lent"
    for caller in (*callers, third):
        caller.close()
    await served.settled(0)
    served.listener.close()


async def test_a_client_that_reads_no_answers_blocks_nothing(served: Served) -> None:
    token = served.lenders.invite(SESSION)
    memories = [Memory(64) for _ in range(MAX_BLOCKS)]
    caller = Caller(served.path)
    for number, memory in enumerate(memories):
        await asyncio.to_thread(caller.send, lend_of(token, memory, first_block=number), [memory.fd])
    num_bytes = sum(memory.size for memory in memories)
    await served.until(lambda: served.lenders.num_bytes == num_bytes)
    caller.close()
    await served.settled(0)
    for memory in memories:
        memory.close()


async def test_others_of_the_host_may_not_even_connect(served: Served) -> None:
    assert served.path.stat().st_mode & 0o777 == 0o600
    assert served.path.stat().st_uid == os.getuid()
