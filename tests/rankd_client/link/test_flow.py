"""What goes to a daemon and when, within its credit, and how it ends: against a real ROUTER."""

from __future__ import annotations

import pytest
from link_ends import MIB, PATIENCE_SECONDS, Router, Setup

from rankd_client.link import conversation, flow
from rankd_client.wire import MIN_CHUNK_BYTES, Ack, AlertNotice, Plan, Refusal, Welcome


def test_hello_welcome_chunk_recorded(router: Router, setup: Setup) -> None:
    content = setup.put("a", 5)
    assert router.welcome() == setup.hello
    chunk = router.chunk()
    assert (chunk.layer, chunk.step, chunk.dtype, chunk.source_dtype) == ("a", 5, "bfloat16", "float32")
    assert (chunk.shape, chunk.total_bytes, chunk.offset) == ((16, 1), 32, 0)
    assert bytes(chunk.payload) == content
    router.send(Ack("received", "a", 5, credit_bytes=32))
    assert not setup.outbox.wait_settled(0.05)
    router.send(Ack("recorded", "a", 5))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)


def test_superseded_settles_too(router: Router, setup: Setup) -> None:
    setup.put("a", 5)
    router.welcome()
    router.chunk()
    router.send(Ack("superseded", "a", 5, by_step=6))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)


def test_a_large_snapshot_goes_in_chunks_as_large_as_the_daemon_says(router: Router, setup: Setup) -> None:
    content = setup.put("a", 1, 11 * MIB)
    router.welcome(chunk_bytes=5 * MIB)
    chunks = [router.chunk() for _ in range(3)]
    assert [(chunk.offset, len(chunk.payload)) for chunk in chunks] == [
        (0, 5 * MIB),
        (5 * MIB, 5 * MIB),
        (10 * MIB, MIB),
    ]
    assert b"".join(chunk.payload for chunk in chunks) == content


def test_no_more_is_sent_than_credit_allows(router: Router, setup: Setup) -> None:
    setup.put("a", 1, 12 * MIB)
    router.welcome(credit_bytes=5 * MIB)
    assert router.chunk().offset == 0
    assert router.silent()
    router.send(Ack("received", "a", 1, credit_bytes=2 * MIB))  # less than was sent: 3 MiB to spend
    assert router.silent()
    router.send(Ack("received", "a", 1, credit_bytes=2 * MIB))
    assert router.chunk().offset == MIN_CHUNK_BYTES
    assert router.silent()


def test_small_credit_still_sends_small_layers(router: Router, setup: Setup) -> None:
    setup.put("a", 1, 64)
    router.welcome(credit_bytes=64)
    assert router.chunk().layer == "a"
    setup.put("b", 1, 64)
    assert router.silent()
    router.send(Refusal("timed_out", "", "a", 1, credit_bytes=64))  # a refusal gives credit back as well
    assert router.chunk().layer == "b"


def test_what_waits_for_credit_is_replaced_by_what_is_newer(router: Router, setup: Setup) -> None:
    router_credit = 32
    setup.put("a", 1)
    router.welcome(credit_bytes=router_credit)
    assert router.chunk().step == 1
    setup.put("a", 2)
    assert router.silent(0.05)
    content = setup.put("a", 3)
    assert setup.outbox.num_replaced == 1
    router.send(Ack("received", "a", 1, credit_bytes=router_credit))
    chunk = router.chunk()
    assert chunk.step == 3 and bytes(chunk.payload) == content


def test_credit_that_never_comes_back_makes_a_new_connection(
    router: Router, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "STARVED_SECONDS", 0.1)
    setup.put("a", 1)
    router.welcome(credit_bytes=32)
    assert router.chunk().step == 1
    setup.put("b", 1)
    router.welcome()
    assert [router.chunk().layer for _ in range(2)] == ["a", "b"]


def test_no_hello_is_answered_with_hello_at_once_and_once(router: Router, setup: Setup) -> None:
    router.welcome()
    setup.put("a", 1)
    router.chunk()
    router.send(Refusal("no_hello", ""), Refusal("no_hello", ""), Refusal("no_hello", ""))
    router.welcome()
    assert router.chunk().layer == "a"
    assert router.silent()


def test_only_one_welcome_counts_for_a_hello(router: Router, setup: Setup) -> None:
    router.welcome(credit_bytes=32)
    setup.put("a", 1)
    assert router.chunk().layer == "a"
    router.send(Welcome("00" * 8, 64 * MIB, MIN_CHUNK_BYTES, 60.0))  # nobody asked: no credit, and nothing anew
    setup.put("b", 1)
    assert router.silent()


def test_a_refused_snapshot_is_not_sent_again(router: Router, setup: Setup, caplog: pytest.LogCaptureFixture) -> None:
    setup.put("a\x1b[2J", 1, 12 * MIB)
    router.welcome(credit_bytes=4 * MIB)
    chunk = router.chunk()
    router.send(Refusal("layer_too_large", "more than \x1b[31m enough", chunk.layer, 1, credit_bytes=4 * MIB))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)
    setup.put("b", 1)
    assert router.chunk().layer == "b"  # nothing more of the refused one
    assert setup.link.num_refused == 1
    assert setup.link.refused == {"a\x1b[2J": "layer_too_large"}
    (record,) = caplog.records
    assert "layer_too_large" in record.getMessage() and record.getMessage().isprintable()


def test_no_more_refused_layers_are_remembered_than_a_model_has(
    router: Router, setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "MAX_REFUSED", 3)
    setup.put("last", 1)
    router.welcome()
    router.chunk()
    names = [*(f"layer.{number}" for number in range(10)), "last"]
    router.send(*(Refusal("too_many_layers", "", name, 1) for name in names))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)
    assert list(setup.link.refused) == names[-3:]


def test_a_passing_refusal_does_not_bar_the_layer(router: Router, setup: Setup) -> None:
    setup.put("a", 1)
    router.welcome()
    router.chunk()
    router.send(Refusal("timed_out", "", "a", 1))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS) and setup.link.refused == {}


def test_alerts_and_plans_reach_the_client(router: Router, setup: Setup) -> None:
    router.welcome(plan=Plan(1, 10, 20))
    router.send(Plan(2, 30, 40), AlertNotice({"rule": "zero", "layer": "a"}))
    assert setup.alerted.wait(PATIENCE_SECONDS)
    assert setup.alerts == [{"rule": "zero", "layer": "a"}]
    assert setup.link.plan == Plan(2, 30, 40)


def test_what_no_message_can_be_made_of_costs_no_other(
    router: Router, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    router.welcome()
    for layer, shape in ("bad", (4, object())), ("good", (4, 4)), ("bad", (4, object())), ("better", (4, 4)):
        snapshot = setup.outbox.reserve(layer, 1, 32, shape)  # type: ignore[arg-type]
        assert snapshot is not None
        snapshot.dtype = "bfloat16"
        setup.outbox.commit(snapshot)
    setup.link.wake()
    assert [router.chunk().layer, router.chunk().layer] == ["good", "better"]
    router.send(Ack("recorded", "good", 1), Ack("recorded", "better", 1))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)
    assert 1 <= setup.outbox.num_dropped <= 2
    assert sum("bad cannot be sent, and is dropped" in line for line in caplog.messages) == 1


def test_what_the_daemon_cannot_read_shows_itself_and_is_dropped(
    router: Router, setup: Setup, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse_until(layer: str) -> list[str]:
        """What comes until that layer does, each but it answered."""
        came = []
        while (chunk := router.chunk()).layer != layer:
            came.append(chunk.layer)
            router.send(Ack("received", chunk.layer, 1, credit_bytes=32))
        router.send(Refusal("bad_header", "not msgpack"))
        return came

    for layer in ("a", "poison", "z"):
        setup.put(layer, 1)
    router.welcome()
    assert refuse_until("poison") == ["a"] and router.chunk().layer == "z"
    router.welcome()
    assert refuse_until("poison") == ["a"]  # and "z" waits for its turn
    router.welcome()
    assert [router.chunk().layer, router.chunk().layer] == ["a", "z"]
    router.send(Ack("recorded", "a", 1), Ack("recorded", "z", 1))
    assert setup.outbox.wait_settled(PATIENCE_SECONDS)
    assert setup.link.num_refused == 2 and setup.link.refused == {}
    assert sum("poison is dropped: bad_header" in line for line in caplog.messages) == 1
