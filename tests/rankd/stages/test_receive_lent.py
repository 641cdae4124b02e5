"""Loans as chunks: whose memory is read, within which bounds, and when it is let go of."""

from pathlib import Path

import pytest
from lending import Memory, lend_of, num_mappings
from receiving import CREDIT, Client, Side, serving

from rankd.auth import OWNER
from rankd_client.wire import LOCAL_VERSION, SCALED_VERSION, Ack, Bye, Chunk, Hello, Lent, Refusal, Welcome, WireError


def lent(at: int = 64, num_bytes: int = 8, block: int = 0, step: int = 1) -> Lent:
    chunk = Chunk("w", step, "float32", (1, num_bytes // 4), num_bytes, 0, b"")
    return Lent(chunk, block, at, num_bytes)


async def lending(side: Side, client: Client, memory: Memory, session: bytes = bytes(range(16))) -> str:
    """Greet `client` and lend `memory` by its token."""
    welcome = await client.ask(Hello("r", session, LOCAL_VERSION))
    assert isinstance(welcome, Welcome) and welcome.arena_socket == "arena.sock"
    lend = lend_of(welcome.arena_token, memory, session=session)
    lender = side.lenders.take(lend, [memory.fd], None, lambda: side.lenders.forget(lender))
    return welcome.arena_token


async def test_a_loan_is_taken_like_a_chunk(socket_dir: Path) -> None:
    memory = Memory()
    memory.view[64:72] = b"abcdefgh"
    async with serving(socket_dir) as side:
        client = side.connect()
        await lending(side, client, memory)
        assert await client.ask(lent()) == Ack("received", "w", 1, "weight", 8)
        assert side.copied == [b"abcdefgh"] and side.counters["num_received_bytes"] == 8
        with pytest.raises(ValueError, match="released"):  # nobody reads it once its credit is back
            bytes(side.taken[0].payload)
    memory.close()


async def test_only_clients_of_version_3_are_invited(socket_dir: Path) -> None:
    async with serving(socket_dir, total_credit_bytes=4 * CREDIT) as side:
        old, new = side.connect(), side.connect()
        welcome = await old.ask(Hello("r", b"s" * 16, SCALED_VERSION))
        assert isinstance(welcome, Welcome) and (welcome.arena_socket, welcome.arena_token) == ("", "")
        answer = await old.ask(lent())
        assert isinstance(answer, Refusal) and answer.code == "unknown_type"
        welcome = await new.ask(Hello("r", b"t" * 16, LOCAL_VERSION))
        assert isinstance(welcome, Welcome) and welcome.arena_token


@pytest.mark.parametrize(
    "loan", [lent(block=1), lent(block=15), lent(at=0), lent(at=63), lent(at=4153), lent(at=1 << 62)], ids=str
)
async def test_what_is_not_lent_is_refused_by_name_and_its_credit_comes_back(socket_dir: Path, loan: Lent) -> None:
    memory = Memory(4096)
    async with serving(socket_dir) as side:
        client = side.connect()
        await lending(side, client, memory)
        answer = await client.ask(loan)
        assert isinstance(answer, Refusal)
        assert (answer.code, answer.layer, answer.step, answer.credit_bytes) == ("not_lent", "w", 1, 8)
        assert await client.ask(lent()) == Ack("received", "w", 1, "weight", 8)
        assert len(side.taken) == 1
    memory.close()


async def test_nobody_reads_the_memory_of_another_client(socket_dir: Path) -> None:
    memory = Memory()
    async with serving(socket_dir, total_credit_bytes=4 * CREDIT) as side:
        owner, other = side.connect(), side.connect()
        await lending(side, owner, memory)
        assert isinstance(await other.ask(Hello("r", b"t" * 16, LOCAL_VERSION)), Welcome)
        answer = await other.ask(lent())
        assert isinstance(answer, Refusal) and answer.code == "not_lent"
    memory.close()


async def test_a_stranger_has_to_say_hello_first(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        answer = await side.connect().ask(lent())
        assert isinstance(answer, Refusal) and answer.code == "no_hello"


async def test_no_more_is_lent_than_credit_allows(socket_dir: Path) -> None:
    memory = Memory(2 * CREDIT)
    async with serving(socket_dir, give_credit=False) as side:
        client = side.connect()
        await lending(side, client, memory)
        await client.say(lent(num_bytes=CREDIT))
        answer = await client.ask(lent(at=64 + CREDIT))
        assert isinstance(answer, Refusal) and answer.code == "credit_exceeded"
    memory.close()


async def test_many_loans_that_have_ended_cut_nobody_off(socket_dir: Path) -> None:
    """A client that takes its memory back may have hundreds of small layers on the way."""
    async with serving(socket_dir) as side:
        client = side.connect()
        assert isinstance(await client.ask(Hello("r", b"t" * 16, LOCAL_VERSION)), Welcome)
        for number in range(300):
            answer = await client.ask(lent(step=number))
            assert isinstance(answer, Refusal) and answer.code == "not_lent"


@pytest.mark.parametrize("how", ["bye", "hello", "silence", "revoked"])
async def test_the_mappings_go_with_the_greeting(socket_dir: Path, how: str) -> None:
    memory = Memory()
    async with serving(socket_dir) as side:
        client = side.connect()
        token = await lending(side, client, memory)
        await client.ask(lent())
        mapped = num_mappings()
        if how == "bye":
            await client.say(Bye())
            await client.ask(Hello("r", b"t" * 16))
        elif how == "hello":
            await client.ask(Hello("r", bytes(range(16)), LOCAL_VERSION))
        elif how == "silence":
            side.now += 3600.0
            side.receive.heartbeat()
            side.receive.heartbeat()
        else:
            side.receive.drop({OWNER.name})
        assert side.lenders.num_bytes == 0 and num_mappings() == mapped - 1
        with pytest.raises(WireError, match="not_lent"):
            side.lenders.borrow(token, lent())
    memory.close()


async def test_a_loan_that_is_being_read_outlives_its_greeting(socket_dir: Path) -> None:
    memory = Memory()
    memory.view[64:72] = b"abcdefgh"
    async with serving(socket_dir, give_credit=False) as side:
        client = side.connect()
        token = await lending(side, client, memory)
        await client.say(lent())
        await client.say(Bye())
        assert isinstance(await client.ask(lent()), Refusal)  # no_hello: all before is done
        assert side.lenders.num_bytes == 0 and token
        assert bytes(side.taken[0].payload) == b"abcdefgh"
    memory.close()


async def test_the_epoch_is_asked_for_the_loan_that_was_handed_on(socket_dir: Path) -> None:
    memory = Memory()
    async with serving(socket_dir, give_credit=False) as side:
        client = side.connect()
        await lending(side, client, memory)
        side.receive.confirm()  # nothing is lent
        await client.say(lent())
        assert isinstance(await client.ask(Ack("received", "w", 1)), Refusal)  # so that all before is done
        side.receive.confirm()
        memory.set_epoch(2)
        with pytest.raises(WireError, match="loan_ended"):
            side.receive.confirm()
    memory.close()
