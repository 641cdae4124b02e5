"""Reports on the push socket: in version 3 alone, for credit, from those who said hello."""

from dataclasses import replace
from pathlib import Path

from receiving import hello as hello_of
from receiving import serving

from rankd_client.wire import LOCAL_VERSION, Ack, Refusal, Reported, Welcome, WireError, encode

REPORT = Reported("w", 5, {"effective_rank": 3.0}, "feature")
NUM_BYTES = len(encode(REPORT)[1])


async def test_a_report_costs_credit_by_its_body_and_gets_it_back(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        welcome = await client.ask(replace(hello_of(), version=LOCAL_VERSION))
        assert isinstance(welcome, Welcome) and welcome.version == LOCAL_VERSION
        assert await client.ask(REPORT) == Ack("received", "w", 5, "feature", NUM_BYTES)
        assert side.taken == [REPORT] and side.counters["num_received_bytes"] == NUM_BYTES


async def test_nobody_gets_beyond_his_credit_with_reports(socket_dir: Path) -> None:
    async with serving(socket_dir, give_credit=False) as side:
        client = side.connect()
        welcome = await client.ask(replace(hello_of(), version=LOCAL_VERSION))
        assert isinstance(welcome, Welcome)
        large = Reported("w", 5, {"effective_rank": 3.0, "note": "x" * (60 << 10)})
        number = welcome.credit_bytes // len(encode(large)[1])
        for _ in range(number + 1):
            await client.say(large)
        answer = await client.hear()
        assert isinstance(answer, Refusal) and answer.code == "credit_exceeded"
        assert len(side.taken) == number


async def test_it_is_no_type_of_older_versions_and_no_beginning(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        answer = await client.ask(REPORT)
        assert isinstance(answer, Refusal) and answer.code == "no_hello"
        assert isinstance(await client.ask(hello_of()), Welcome)
        answer = await client.ask(REPORT)
        assert isinstance(answer, Refusal) and answer.code == "unknown_type"
        assert side.taken == []


async def test_a_report_of_before_another_hello_earns_nothing(socket_dir: Path) -> None:
    """The hello has granted all credit anew: a client that got that of before besides would go beyond it."""
    async with serving(socket_dir, give_credit=False) as side:
        client, hello = side.connect(), replace(hello_of(), version=LOCAL_VERSION)
        assert isinstance(await client.ask(hello), Welcome)
        [before] = side.receive._peers
        await client.say(REPORT)
        assert isinstance(await client.ask(hello), Welcome)
        [after] = side.receive._peers
        assert after is not before
        side.receive.give_credit(before, REPORT)
        side.receive.refuse_chunk(before, REPORT, WireError("assembly_full", ""))
        assert await client.hear() == Refusal("assembly_full", "", "w", 5, "feature", 0)  # and no credit before it
        assert after.credit_bytes == after.granted_bytes
