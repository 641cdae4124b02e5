"""Connections of version 2 beside those of version 1."""

from pathlib import Path

import pytest
from receiving import CREDIT, STREAM_ID, hello, serving

from rankd_client.wire import PROTOCOL_VERSION, SCALED_VERSION, Ack, Chunk, Hello, Refusal, Welcome

INT8 = Chunk("w", 1, "int8", (1, 4), 8, 0, bytes(8))


async def test_a_connection_of_version_2_brings_scales(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        asked = await client.ask(Hello("r", b"s" * 16, SCALED_VERSION))
        assert asked == Welcome(STREAM_ID, CREDIT, CREDIT, 1.0, SCALED_VERSION)
        assert await client.ask(INT8) == Ack("received", "w", 1, "weight", 8)
        assert [item.dtype for item in side.taken] == ["int8"]


async def test_on_one_of_version_1_they_are_reserved(socket_dir: Path) -> None:
    async with serving(socket_dir) as side:
        client = side.connect()
        welcome = await client.ask(hello())
        assert isinstance(welcome, Welcome) and welcome.version == PROTOCOL_VERSION
        answer = await client.ask(INT8)
        assert isinstance(answer, Refusal) and answer.code == "reserved_dtype"
        assert isinstance(await client.ask(Hello("r", b"s" * 16, SCALED_VERSION)), Welcome)
        assert isinstance(await client.ask(INT8), Ack), "the newest hello counts"


@pytest.mark.parametrize("dtype", ["int8", "float32"])
async def test_a_stranger_is_told_to_say_hello_whatever_it_sends(socket_dir: Path, dtype: str) -> None:
    async with serving(socket_dir) as side:
        size = 8 if dtype == "int8" else 16
        answer = await side.connect().ask(Chunk("w", 1, dtype, (1, 4), size, 0, bytes(size)))
        assert isinstance(answer, Refusal) and answer.code == "no_hello"
