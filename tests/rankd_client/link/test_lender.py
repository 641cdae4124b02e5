"""Memory that a link lends: to a ROUTER and an arena socket that are worked by hand."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from link_ends import DOOR, MIB, PATIENCE_SECONDS, ArenaDoor, Router, Setup, lendable

from rankd_client.link import lender
from rankd_client.wire import LOCAL_VERSION, MAX_CHUNK_BYTES, Ack, Bye, Chunk, Hello, Lent, Refusal, Welcome

BLOCK_BYTES = 8 * MIB


@pytest.fixture(autouse=True)
def _small_loans(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a layer of 7 MiB takes two."""
    monkeypatch.setattr("rankd_client.link.flow.MAX_CHUNK_BYTES", 4 * MIB)


@pytest.fixture
def setup(address: str) -> Iterator[Setup]:
    setup = Setup(address, BLOCK_BYTES, newest=LOCAL_VERSION, allocate=lendable, max_bytes=4 * BLOCK_BYTES)
    yield setup
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)
    assert not setup.link._thread.is_alive()


@pytest.fixture
def lending(router: Router, setup: Setup, door: ArenaDoor) -> Setup:
    """A link that lends."""
    router.welcome(**DOOR)
    door.take()
    setup.until(lambda: setup.link.path == "memfd")
    return setup


def taken(setup: Setup, num_bytes: int) -> bool:
    """Whether so much memory is taken."""
    return setup.outbox.arena.num_bytes - setup.outbox.arena.free_bytes == num_bytes


def test_the_lend_says_whose_memory_it_is_and_every_page_of_it_is_there(
    router: Router, setup: Setup, door: ArenaDoor
) -> None:
    assert router.welcome(**DOOR).version == LOCAL_VERSION
    lend = door.take()
    assert (lend.token, lend.session, lend.first_block, lend.sizes) == (
        "a token",
        setup.hello.session,
        0,
        (BLOCK_BYTES + 64,),
    )
    assert door.epochs() == [lend.epoch]


def test_a_snapshot_is_lent_in_chunks_with_nothing_of_it_in_frames(
    router: Router, lending: Setup, door: ArenaDoor
) -> None:
    content = lending.put("a", 1, 7 * MIB)
    parts = [router.lent(), router.lent()]
    assert [(part.chunk.offset, part.num_bytes) for part in parts] == [(0, 4 * MIB), (4 * MIB, 3 * MIB)]
    assert {(part.chunk.layer, part.chunk.step, part.chunk.total_bytes, part.block) for part in parts} == {
        ("a", 1, 7 * MIB, 0)
    }
    assert b"".join(door.read(part) for part in parts) == content


def test_a_loan_may_be_larger_than_the_frames_that_the_daemon_wants(
    router: Router, setup: Setup, door: ArenaDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rankd_client.link.flow.MAX_CHUNK_BYTES", MAX_CHUNK_BYTES)
    router.welcome(chunk_bytes=4 * MIB, **DOOR)
    door.take()
    setup.until(lambda: setup.link.path == "memfd")
    setup.put("a", 1, 7 * MIB)
    assert router.lent().num_bytes == 7 * MIB


def test_credit_is_spent_and_comes_back_as_with_frames(router: Router, setup: Setup, door: ArenaDoor) -> None:
    router.welcome(credit_bytes=4 * MIB, **DOOR)
    door.take()
    setup.until(lambda: setup.link.path == "memfd")
    setup.put("a", 1, 7 * MIB)
    assert router.lent().chunk.offset == 0
    assert router.silent()
    router.send(Ack("received", "a", 1, credit_bytes=4 * MIB))
    assert router.lent().chunk.offset == 4 * MIB


def test_a_region_is_reused_only_after_the_answer(router: Router, lending: Setup, door: ArenaDoor) -> None:
    content = lending.put("a", 1, 64)
    first = router.lent()
    lending.put("a", 2, 64)  # takes the place of the older one, which the daemon may be reading
    assert router.lent().at != first.at
    assert door.read(first) == content
    assert taken(lending, 128)
    router.send(Ack("received", "a", 1, credit_bytes=64))
    lending.until(lambda: taken(lending, 64))


def test_half_of_the_arena_is_never_lent(router: Router, lending: Setup) -> None:
    """Or a daemon that stands still would hold all of it, and pushes would find no room."""
    for layer, num_bytes in (("a", 1 * MIB), ("b", 2 * MIB), ("c", 2 * MIB)):
        lending.put(layer, 1, num_bytes)
    assert [router.lent().chunk.layer for _ in range(2)] == ["a", "b"] and router.silent()
    lending.put("c", 2, 2 * MIB)  # in the place of the one that waits
    router.send(Ack("received", "a", 1, credit_bytes=1 * MIB))
    lent = router.lent()
    assert (lent.chunk.layer, lent.chunk.step) == ("c", 2)


def test_a_refusal_ends_a_loan_and_so_does_any_later_answer(router: Router, lending: Setup) -> None:
    for layer in "abc":
        lending.put(layer, 1, 64)
        router.lent()
    router.send(Refusal("timed_out", "of another step", "c", 0))  # no answer to a chunk: it gives no credit back
    router.send(Refusal("layer_too_large", "", "b", 1, credit_bytes=64))  # the answer to "a" was lost
    for layer in "abc":
        lending.put(layer, 2, 64)
        router.lent()
    lending.until(lambda: taken(lending, 4 * 64))  # only that of "c" is still lent, beside the three newer ones


def test_the_epoch_rises_before_anything_is_reused_when_the_daemon_hangs_up(
    router: Router, lending: Setup, door: ArenaDoor
) -> None:
    (epoch,) = door.epochs()
    lending.put("a", 1, 64)
    router.lent()
    door.hang_up()
    hello = router.receive()  # what is unsettled goes again
    assert isinstance(hello, Hello) and door.epochs()[0] > epoch
    assert lending.link.path == "zeromq"


def test_what_was_lent_goes_in_frames_after_the_daemon_hung_up(router: Router, lending: Setup, door: ArenaDoor) -> None:
    content = lending.put("a", 1, 64)
    router.lent()
    door.hang_up()
    router.send(Refusal("not_lent", "", "a", 1, credit_bytes=64))
    router.welcome(arena_socket="", arena_token="")
    assert bytes(router.chunk().payload) == content


@pytest.mark.parametrize("code", ["not_lent", "loan_ended"])
def test_a_loan_that_could_not_be_read_is_no_verdict_on_the_snapshot(
    code: str, router: Router, lending: Setup, door: ArenaDoor
) -> None:
    content = lending.put("a", 1, 7 * MIB)
    first, second = router.lent(), router.lent()
    (epoch,) = door.epochs()
    router.send(Refusal(code, "", "a", 1, credit_bytes=first.num_bytes))
    router.send(Refusal("chunk_order", "", "a", 1, credit_bytes=second.num_bytes))
    router.welcome(arena_socket="", arena_token="")
    assert door.epochs()[0] > epoch
    chunks = [router.chunk(), router.chunk()]
    assert b"".join(chunk.payload for chunk in chunks) == content


def test_a_new_connection_lends_anew_with_another_epoch(
    router: Router, address: str, lending: Setup, door: ArenaDoor
) -> None:
    epochs = door.epochs()
    router.send(Bye())
    assert door.has_left()
    assert door.epochs() > epochs  # also for a daemon that kept its mappings
    door.hang_up()
    door.blocks.clear()
    router.welcome(**DOOR)
    lend = door.take()
    assert lend.epoch > epochs[0]
    lending.until(lambda: lending.link.path == "memfd")
    content = lending.put("a", 1, 64)
    assert door.read(router.lent()) == content


def test_a_grown_arena_is_lent_on_the_same_connection(router: Router, lending: Setup, door: ArenaDoor) -> None:
    lending.outbox.grow(2 * BLOCK_BYTES, 1)
    lending.link.wake()
    lend = door.hear()
    assert (lend.first_block, lend.sizes) == (1, (BLOCK_BYTES + 64,))
    lending.put("a", 1, BLOCK_BYTES)
    assert router.lent().block == 0
    lending.put("b", 1, BLOCK_BYTES)  # in memory that was not taken yet
    assert isinstance(router.lent(), Lent)  # the rest of "a"
    assert isinstance(router.receive(), Chunk)


@pytest.mark.parametrize("missing", ["socket", "path", "token", "answer"])
def test_where_nothing_can_be_lent_frames_go_at_once(
    missing: str, router: Router, setup: Setup, door: ArenaDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    if missing == "socket":
        router.welcome()
    elif missing == "path":
        router.welcome(arena_socket="another.sock", arena_token="t")
    else:
        router.welcome(**DOOR)
        door.hear()
        if missing == "token":
            door.say(Refusal("unknown_token", "no such"))
            assert door.has_left()
    content = setup.put("a", 1, 64)
    assert bytes(router.chunk().payload) == content
    assert setup.link.path == "zeromq"


def test_memory_that_is_no_memfd_is_not_lent(router: Router, address: str, door: ArenaDoor) -> None:
    plain = Setup(address, newest=LOCAL_VERSION)
    router.welcome(**DOOR)
    plain.put("a", 1, 64)
    assert router.chunk().layer == "a"
    plain.link.stop(0.0)
    plain.link.join(PATIENCE_SECONDS)


def test_a_refused_lender_asks_again_later(
    router: Router, setup: Setup, door: ArenaDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lender, "RETRY_SECONDS", 0.05)
    setup.link._talk.lender._retry_seconds = 0.05
    router.welcome(**DOOR)
    door.hear()
    door.say(Refusal("too_much_lent", "no room"))
    assert door.has_left()
    door.hang_up()
    door.blocks.clear()
    door.take()
    setup.until(lambda: setup.link.path == "memfd")


def test_an_answer_that_never_comes_is_not_waited_for(
    router: Router, address: str, door: ArenaDoor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lender, "ANSWER_SECONDS", 0.1)
    setup = Setup(address, BLOCK_BYTES, newest=LOCAL_VERSION, allocate=lendable)
    router.welcome(**DOOR)
    door.hear()
    assert door.has_left()
    setup.until(lambda: "does not answer" in setup.link._talk.lender.why)
    setup.link.stop(0.0)
    setup.link.join(PATIENCE_SECONDS)


@pytest.mark.parametrize("packet", [b"", b"\xc1", b"x" * 3000], ids=["nothing", "no msgpack", "too long"])
def test_whatever_a_daemon_says_there_only_ends_the_lending(
    packet: bytes, router: Router, setup: Setup, door: ArenaDoor
) -> None:
    router.welcome(**DOOR)
    door.hear()
    assert door._peer is not None
    door._peer.send(packet)
    assert door.has_left()
    setup.put("a", 1, 64)
    assert router.chunk().layer == "a" and setup.link.connected


def test_a_directory_of_somebody_else_gets_no_memory(
    router: Router, address: str, setup: Setup, door: ArenaDoor, tmp_path: Path
) -> None:
    assert isinstance(router.receive(), Hello)
    tmp_path.chmod(0o777)
    router.send(Welcome("00" * 8, 64 * MIB, 4 * MIB, 60.0, LOCAL_VERSION, **DOOR))
    setup.put("a", 1, 64)
    assert router.chunk().layer == "a"
    setup.until(lambda: "writable by everyone" in setup.link._talk.lender.why)
    tmp_path.chmod(0o700)


def test_stop_waits_for_what_is_lent_and_leaves_no_descriptor(router: Router, lending: Setup, door: ArenaDoor) -> None:
    lending.put("a", 1, 64)
    router.lent()
    lending.link.stop(PATIENCE_SECONDS)
    assert router.silent()  # no bye yet: its memory is being read
    router.send(Ack("received", "a", 1, credit_bytes=64))
    assert isinstance(router.receive(), Bye)
    lending.link.join(PATIENCE_SECONDS)
    assert door.has_left()


def test_a_daemon_that_stood_still_sees_that_the_loan_has_ended(
    router: Router, lending: Setup, door: ArenaDoor
) -> None:
    """The link gives it up after three heartbeats; whatever it copies later, it can tell."""
    (epoch,) = door.epochs()
    lending.put("a", 1, 64)
    lent = router.lent()
    lending.link._talk._heartbeat_seconds = 0.05
    lending.link.wake()
    assert door.has_left()
    lending.put("b", 1, 64)
    assert door.epochs()[0] > epoch
    assert len(door.read(lent)) == 64  # reading is safe at any time
