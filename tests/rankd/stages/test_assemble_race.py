"""Processes of a job at different steps: what can still be whole is kept, and nothing else."""

import random
from typing import Any

import pytest
from chunks import A, assembler, chunk, ones

from rankd.race import Lost
from rankd.stages.assemble import MAX_OPEN_STEPS, Assemble
from rankd_client.wire import Chunk, Shard, WireError

NUM = 4
S = [bytes([65 + number]) * 16 for number in range(NUM)]
"""Sessions of four processes, each of which has a row of four."""


def row(number: int, step: int, layer: str = "w", **fields: Any) -> Chunk:
    payload = fields.pop("payload", ones(4))
    return chunk(
        payload, (NUM, 4), shard=Shard(rectangles=((number, number + 1, 0, 4),)), step=step, layer=layer, **fields
    )


def push(assemble: Assemble, step: int, *numbers: int, now: float = 0.0, layer: str = "w") -> list[int]:
    """The steps that were whole with these processes' parts."""
    added = [assemble.add("r", S[number], row(number, step, layer), now) for number in numbers]
    return [item.snapshot.step for item in added if item.snapshot is not None]


def lost(assemble: Assemble) -> list[tuple[int, str, int | None, str]]:
    """Step, reason, later step, and whose parts."""
    return [
        (item.key[3], item.why, item.by_step, "".join(sorted(chr(session[0]) for session in item.sessions)))
        for item in assemble.take_lost()
    ]


def test_processes_some_steps_apart_lose_nothing() -> None:
    assemble = assembler()
    taken = []
    for step in range(20):
        for number, behind in enumerate((0, 3, 1, 5)):
            taken += push(assemble, step - behind, number) if step >= behind else []
    assert taken == list(range(15))
    assert lost(assemble) == [] and assemble.counters["num_assembled"] == 15


def test_a_step_that_a_process_left_out_is_given_up_when_it_begins_a_later_one() -> None:
    assemble = assembler()
    push(assemble, 1, 0, 1, 2)
    push(assemble, 2, 0)
    assert lost(assemble) == []
    push(assemble, 2, 3)  # newest wins in its outbox: it never sends step 1
    assert lost(assemble) == [(1, "overtaken", 2, "ABC")]
    assert assemble.counters["dropped_overtaken"] == 1 and assemble.num_bytes == 2 * 16
    assert push(assemble, 2, 1, 2) == [2]
    assert assemble.num_bytes == 0 and lost(assemble) == []


def test_a_part_of_a_step_that_another_left_out_is_turned_away_at_once() -> None:
    assemble = assembler()
    push(assemble, 2, 0)
    assert push(assemble, 1, 1) == []
    assert lost(assemble) == [(1, "overtaken", 2, "B")]
    assert assemble.num_bytes == 16, "it is not kept"
    push(assemble, 1, 2)
    assert lost(assemble) == [(1, "overtaken", 2, "C")]
    assert (assemble.counters["dropped_overtaken"], assemble.counters["dropped_late_shards"]) == (1, 1)
    assert push(assemble, 2, 1, 2, 3) == [2]


def test_more_of_a_part_that_was_given_up_is_taken_for_nothing_and_is_no_fault() -> None:
    assemble = assembler()
    assemble.add("r", S[0], row(0, 1, payload=ones(2)), 0.0)
    push(assemble, 1, 1)
    push(assemble, 2, 2)
    assert lost(assemble) == [(1, "overtaken", 2, "AB")]
    assert assemble.add("r", S[0], row(0, 1, payload=ones(2), offset=8), 0.0).snapshot is None
    with pytest.raises(WireError, match="chunk_order"):
        assemble.add("r", S[0], row(0, 3, payload=ones(2), offset=8), 0.0)


def test_a_whole_step_gives_up_the_earlier_ones_of_its_layer_alone() -> None:
    assemble = assembler()
    push(assemble, 1, 0, 1)
    push(assemble, 1, 0, 1, layer="v")
    push(assemble, 2, 0, 1)
    assert push(assemble, 2, 2, 3) == [2]
    assert lost(assemble) == [(1, "overtaken", 2, "AB")]
    assert push(assemble, 1, 2, 3, layer="v") == [1]


def test_a_job_that_goes_back_to_a_checkpoint_is_new_data() -> None:
    assemble = assembler()
    for step in (10, 20):
        assert push(assemble, step, 0, 1, 2, 3) == [step]
    push(assemble, 30, 1, 2, 3)
    assert push(assemble, 15, 0, 1) == [], "they go back one after the other"
    assert push(assemble, 15, 2, 3) == [15]
    assert lost(assemble) == [] and assemble.num_bytes == 0, "what they had sent of step 30 is void"
    assert push(assemble, 30, 0, 1, 2, 3) == [30]


def test_a_job_that_is_started_again_from_a_checkpoint_is_new_data() -> None:
    assemble = assembler()
    assert push(assemble, 20, 0, 1, 2, 3) == [20]
    push(assemble, 21, 0, 1)
    new = [bytes([97 + number]) * 16 for number in range(NUM)]
    for number in range(NUM):
        added = assemble.add("r", new[number], row(number, 10), 0.0)
    assert added.snapshot is not None and added.snapshot.step == 10
    assert lost(assemble) == []


def test_a_part_of_a_step_before_the_last_whole_one_is_of_a_job_that_went_back() -> None:
    """Clients send a layer's steps in ascending order: nothing else can be meant by it, whoever sends it."""
    assemble = assembler()
    for step in (10, 20):
        assert push(assemble, step, 0, 1, 2, 3) == [step]
    push(assemble, 12, 3)
    push(assemble, 12, 0, 1)
    assert lost(assemble) == [] and push(assemble, 12, 2) == [12]


def test_a_connection_that_breaks_takes_along_what_it_had_sent_in_part() -> None:
    assemble = assembler()
    push(assemble, 1, 0, 1)
    assemble.add("r", S[2], row(2, 1, payload=ones(2)), 0.0)
    assemble.add("r", S[2], row(2, 1, "alone", payload=ones(2)), 0.0)
    assemble.lose(S[2])
    assert assemble.num_bytes == 2 * 16 and assemble.counters["dropped_process_gone"] == 1
    assert push(assemble, 1, 2, 3) == [1], "it came back"


def test_what_waits_for_a_process_that_is_gone_is_given_up() -> None:
    assemble = assembler()
    assert push(assemble, 1, 0, 1, 2, 3) == [1]
    push(assemble, 2, 0, 1, 2)
    push(assemble, 2, 0, layer="unknown")
    assert assemble.expire(1.0, frozenset([b"x" * 16]), {"r"}) == []
    sessions = frozenset(S[:3])
    assert assemble.expire(1.0, frozenset([S[3]]), {"r"}) == [Lost(("r", "w", "weight", 2), sessions, "process_gone")]
    assert assemble.num_bytes == 16, "nobody knows who makes the other layer"
    assert [item.why for item in assemble.expire(2.0, frozenset([S[0]]), {"r"})] == ["process_gone"], "all that sent it"
    assert assemble.num_bytes == 0 and assemble.counters["dropped_process_gone"] == 2


def test_what_waits_for_a_run_of_which_nobody_is_left_is_given_up() -> None:
    assemble = assembler()
    push(assemble, 2, 0, 1)
    assert assemble.expire(1.0, frozenset(), {"r"}) == []
    assert [item.why for item in assemble.expire(1.0, frozenset(), {"another"})] == ["process_gone"]
    assert assemble.num_bytes == 0


def test_a_new_process_in_the_place_of_one_that_is_gone_is_waited_for() -> None:
    assemble = assembler()
    assert push(assemble, 1, 0, 1, 2, 3) == [1]
    push(assemble, 2, 0, 1)
    assemble.add("r", b"n" * 16, row(3, 2), 0.0)
    assert assemble.expire(1.0, frozenset([S[3]]), {"r"}) == []
    assert push(assemble, 2, 2) == [2]


def test_the_earliest_step_takes_the_room_of_later_ones() -> None:
    """It is the next to be whole; those ahead come again, the slow one does not."""
    assemble = assembler(max_assembly_bytes=6 * 16, max_layer_bytes=6 * 16, max_mailbox_bytes=6 * 16)
    push(assemble, 1, 0, 1, 2)
    push(assemble, 2, 0, 1)
    push(assemble, 3, 0)
    assert push(assemble, 1, 3) == [1]
    assert lost(assemble) == [(3, "assembly_full", None, "A")]


def test_where_there_is_no_room_for_a_part_the_others_are_not_kept_for_nothing() -> None:
    assemble = assembler(max_assembly_bytes=4 * 16, max_layer_bytes=4 * 16, max_mailbox_bytes=4 * 16)
    push(assemble, 1, 0, 1)
    push(assemble, 2, 0, 1, layer="v")
    with pytest.raises(WireError, match="assembly_full"):
        push(assemble, 2, 2, layer="v")
    assert lost(assemble) == [(2, "assembly_full", None, "AB")] and assemble.num_bytes == 2 * 16
    assert push(assemble, 2, 3, layer="v") == [], "nor is more of it kept"
    assert lost(assemble) == [(2, "assembly_full", None, "D")] and assemble.num_bytes == 2 * 16
    assert (assemble.counters["dropped_assembly_full"], assemble.counters["dropped_late_shards"]) == (1, 1)
    assert push(assemble, 1, 2, 3) == [1]
    assert push(assemble, 3, 0, 1, 2, 3, layer="v") == [3]


def test_so_many_steps_of_a_layer_are_unfinished_at_once() -> None:
    assemble = assembler()
    steps = range(10, 10 + MAX_OPEN_STEPS)
    for step in steps:
        push(assemble, step, 0)
    with pytest.raises(WireError, match="assembly_full"):
        push(assemble, 100, 0)
    assert lost(assemble) == [], "what is there is older, and the next to be whole"
    push(assemble, 5, 1)
    assert [item[:2] for item in lost(assemble)] == [(5, "overtaken")]
    assert push(assemble, 10, 1, 2, 3) == [10]


def test_a_whole_matrix_waits_for_nobody() -> None:
    """Two processes that push the same layer whole are no job of shards, whatever their steps are."""
    assemble = assembler()
    for session, step in ((S[0], 5), (S[1], 9)):
        assert assemble.add("r", session, chunk(ones(4), (2, 4), step=step), 0.0).snapshot is None
    for session, step in ((S[0], 5), (S[1], 9)):
        added = assemble.add("r", session, chunk(ones(4), (2, 4), step=step, offset=16), 0.0)
        assert added.snapshot is not None and added.snapshot.step == step
    assert lost(assemble) == []


@pytest.mark.parametrize("seed", range(20))
def test_whatever_processes_send_the_books_are_kept(seed: int) -> None:
    """Steps left out, sent again and gone back to, in part and whole, processes that vanish, and little room."""
    chance = random.Random(seed)
    assemble = assembler(
        max_assembly_bytes=12 * 16, max_layer_bytes=12 * 16, max_mailbox_bytes=12 * 16, max_open_layers=9
    )
    steps = dict.fromkeys(S, 0)
    num_whole = num_given_up = 0
    for now in range(600):
        session = min(S, key=steps.__getitem__) if chance.random() < 0.8 else chance.choice(S)
        number = S.index(session)
        steps[session] = max(0, steps[session] + chance.choice((1,) * 20 + (0, 2, -3)))
        layer, half = chance.choice("wwv"), chance.random() < 0.1
        item = row(number, steps[session], layer, payload=ones(2 if half else 4))
        try:
            num_whole += assemble.add("r", session, item, float(now)).snapshot is not None
            if half and chance.random() < 0.5:
                rest = row(number, steps[session], layer, payload=ones(2), offset=8)
                num_whole += assemble.add("r", session, rest, float(now)).snapshot is not None
        except WireError as error:
            assert error.code == "assembly_full"
        num_given_up += sum(not item.is_shard for item in assemble.take_lost())
        if chance.random() < 0.02:
            assemble.lose(chance.choice(S))
        if chance.random() < 0.02:
            num_given_up += len(assemble.expire(float(now), frozenset([chance.choice(S)]), {"r"}))
        assert 0 <= assemble.num_bytes <= 12 * 16
    reasons = ("timed_out", "overtaken", "process_gone", "assembly_full")
    assert num_whole == assemble.counters["num_assembled"]
    assert num_whole and num_given_up <= sum(assemble.counters[f"dropped_{why}"] for why in reasons)
    assemble.expire(1e9)
    assert assemble.num_bytes == 0
    assert assemble.add("r", A, chunk(ones(4), (2, 2), layer="after"), 1e9).snapshot is not None
