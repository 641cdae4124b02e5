"""What is refused because there is too much of it, or it comes in no order, and whose place it takes."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from chunks import HALF, A, B, assembler, chunk, ones

from rankd.config import Limits
from rankd.quota import NO_QUOTA, Quota
from rankd.stages.assemble import Assemble
from rankd_client.wire import Chunk, Shard, WireError

REFUSED: dict[str, tuple[dict[str, Any], list[Chunk], Chunk]] = {
    "chunk_order: begins in the middle": ({}, [], chunk(ones(2), (2, 2), offset=8)),
    "chunk_order: a gap": ({}, [chunk(ones(1), (2, 2))], chunk(ones(1), (2, 2), offset=8)),
    "chunk_order: twice": (
        {},
        [chunk(ones(1), (2, 2)), chunk(ones(1), (2, 2), offset=4)],
        chunk(ones(1), (2, 2), offset=4),
    ),
    "chunk_order: another shape": ({}, [chunk(ones(2), (2, 2))], chunk(ones(2), (4, 1), offset=8)),
    "chunk_order: another shard": ({}, [chunk(ones(1), (2, 2), shard=HALF)], chunk(ones(2), (2, 2), offset=4)),
    "layer_too_large: whole": ({"max_layer_bytes": 15}, [], chunk(ones(4), (2, 2))),
    "layer_too_large: a shard of it": ({"max_layer_bytes": 15}, [], chunk(ones(1), (2, 2), shard=HALF)),
    "assembly_full: bytes": (
        {"max_layer_bytes": 16, "max_assembly_bytes": 31},
        [chunk(ones(1), (2, 2), layer="other")],
        chunk(ones(1), (2, 2)),
    ),
    "assembly_full: number": ({"max_open_layers": 1}, [chunk(ones(1), (2, 2), layer="other")], chunk(ones(1), (2, 2))),
    "too_many_layers: another": (
        {"max_layers_per_run": 1},
        [chunk(ones(1), (1, 1), layer="o")],
        chunk(ones(1), (1, 1)),
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_come_before_anything_is_held(case: str) -> None:
    limits, before, refused = REFUSED[case]
    assemble = assembler(**limits)
    for item in before:
        assemble.add("r", A, item, 0.0)
    num_bytes = assemble.num_bytes
    with pytest.raises(WireError) as raised:
        assemble.add("r", A, refused, 0.0)
    assert raised.value.code == case.partition(":")[0]
    assert assemble.num_bytes == num_bytes


def test_a_refused_chunk_takes_no_place_of_a_run() -> None:
    assemble = assembler(max_runs=1, max_layer_bytes=15)
    with pytest.raises(WireError, match="layer_too_large"):
        assemble.add("hostile", A, chunk(ones(4), (2, 2)), 0.0)
    assert assemble.add("r", A, chunk(ones(1), (1, 1)), 0.0).snapshot is not None
    with pytest.raises(WireError, match="too_many_runs"):
        assemble.add("another", A, chunk(ones(1), (1, 1)), 0.0)


NEVER_TAKEN = {
    "chunk_order": chunk(ones(2), (2, 2), offset=8),
    "layer_too_large": chunk(ones(1), (8, 8)),
    "quota_exceeded": chunk(ones(1), (2, 4)),
    "replica": chunk(ones(4), (2, 2), shard=Shard(replica=1)),
}


@pytest.mark.parametrize("code", NEVER_TAKEN)
def test_what_was_taken_of_a_run_is_not_asked_for_a_chunk_that_is_not_taken(code: str) -> None:
    """It costs a read of all its layers, and whoever waits behind it waits for that."""
    assemble = Assemble(Limits(max_layer_bytes=64), Counter(), of_namespace("ns", Quota(max_bytes=16)))
    if code == "replica":
        assert not assemble.asks("@ns/r", NEVER_TAKEN[code])
    else:
        with pytest.raises(WireError, match=code):
            assemble.asks("@ns/r", NEVER_TAKEN[code])
    assert assemble.asks("@ns/r", chunk(ones(4), (2, 2)))
    take(assemble, "@ns/r", "a")
    assert not assemble.asks("@ns/r", chunk(ones(4), (2, 2)))


def test_what_was_taken_of_a_run_is_asked_for_once_even_if_it_finds_no_room() -> None:
    assemble = assembler(max_runs=1, max_layers_per_run=1, max_layers=1)
    assert assemble.asks("r", chunk(ones(4), (2, 2), layer="b"))
    with pytest.raises(WireError, match="too_many_layers"):
        assemble.add("r", A, chunk(ones(4), (2, 2), layer="b"), 0.0, {("a", "weight"): 1})
    assert not assemble.asks("r", chunk(ones(4), (2, 2), layer="b"))
    with pytest.raises(WireError, match="too_many_runs"):
        assemble.asks("s", chunk(ones(4), (2, 2)))
    assemble.forget("r")
    take(assemble, "s", "a")
    assemble.forget("s")
    assert assemble.asks("r", chunk(ones(4), (2, 2), layer="b"))


def test_a_silent_run_gives_up_its_place_unless_connected() -> None:
    assemble = assembler(max_runs=2, run_idle_seconds=10.0)
    assemble.add("old", A, chunk(ones(1), (2, 2)), 0.0)
    assert assemble.idle_run(100.0) is None, "there is room"
    assemble.add("new", A, chunk(ones(1), (2, 2)), 5.0)
    assert assemble.idle_run(10.0) is None
    assert assemble.idle_run(10.1) == "old"
    assert assemble.idle_run(15.1, {"old"}) == "new"
    assert assemble.idle_run(99.0, {"old", "new"}) is None
    assert assemble.num_bytes == 32
    assemble.forget("old")
    assert assemble.num_bytes == 16
    assemble.add("another", A, chunk(ones(1), (1, 1)), 0.0)


def of_namespace(name: str, quota: Quota) -> Callable[[str], Quota]:
    return lambda namespace: quota if namespace == name else NO_QUOTA


def test_a_namespace_has_room_for_so_many_runs_and_the_others_do_not_pay() -> None:
    assemble = Assemble(Limits(), Counter(), quota=of_namespace("ns", Quota(max_runs=2)))
    for run in ("@ns/a", "@ns/b"):
        assert assemble.add(run, A, chunk(ones(4), (2, 2)), 0.0).snapshot is not None
    with pytest.raises(WireError, match=r"quota_exceeded: namespace 'ns' has 2 runs"):
        assemble.add("@ns/c", A, chunk(ones(4), (2, 2)), 0.0)
    for run in ("@ns/a", "@other/c", "c"):
        assert assemble.add(run, A, chunk(ones(4), (2, 2), step=2), 0.0).snapshot is not None
    assemble.forget("@ns/a")
    assert assemble.add("@ns/c", A, chunk(ones(4), (2, 2)), 0.0).snapshot is not None


def test_a_namespace_has_room_for_so_many_bytes_and_gets_it_back() -> None:
    assemble = Assemble(Limits(), Counter(), quota=of_namespace("ns", Quota(max_bytes=100)))
    half = Shard(rectangles=((0, 4, 0, 2),))
    assemble.add("@ns/a", A, chunk(ones(8), (4, 4), shard=half), 0.0)
    assemble.add("@ns/b", A, chunk(ones(8), (4, 4), shard=half), 0.0)
    with pytest.raises(WireError, match=r"quota_exceeded: namespace 'ns' has a quota of 100 bytes"):
        assemble.add("@ns/a", A, chunk(ones(16), (4, 4), layer="v"), 0.0)
    assert assemble.add("a", A, chunk(ones(16), (4, 4), layer="v"), 0.0).snapshot is not None
    assert len(list(assemble.expire(1000.0))) == 2
    assert assemble.add("@ns/a", A, chunk(ones(16), (4, 4), layer="v"), 0.0).snapshot is not None


def test_a_namespace_has_a_share_of_the_unfinished_layers_however_small_they_are() -> None:
    assemble = assembler(max_open_layers=4)
    begun = [chunk(ones(1), (1, 2), layer=layer) for layer in "abc"]
    for item in begun[:2]:
        assemble.add("@ns/a", A, item, 0.0)
    with pytest.raises(WireError, match=r"quota_exceeded: namespace 'ns' has 2 unfinished layers, its share"):
        assemble.add("@ns/b", A, begun[2], 0.0)
    assemble.add("@ns/a", A, begun[1], 0.0)  # begun anew in its own place
    for item in begun[:2]:
        assemble.add("@other/a", A, item, 0.0)
    with pytest.raises(WireError, match="assembly_full"):
        assemble.add("r", A, begun[0], 0.0)
    assemble.forget("@other/a")
    assert len(list(assemble.expire(1000.0))) == 2
    for item in begun[:2]:
        assemble.add("@ns/b", A, item, 1000.0)


def test_pieces_of_unfinished_layers_are_counted_and_a_namespace_has_half() -> None:
    assemble = assembler(max_open_pieces=6)
    three = chunk(ones(3), (1, 8), shard=Shard(ranges=((0, 1), (2, 3), (4, 5))))
    one = chunk(ones(1), (1, 8), shard=Shard(rectangles=((0, 1, 0, 1),)), layer="v")
    for _ in range(2):
        assemble.add("@ns/a", A, three, 0.0)  # the second time in its own place
    with pytest.raises(WireError, match="quota_exceeded: namespace 'ns' has a share of 3 unfinished pieces"):
        assemble.add("@ns/b", A, one, 0.0)
    assemble.add("r", A, three, 0.0)
    with pytest.raises(WireError, match="assembly_full"):
        assemble.add("r", B, one, 0.0)
    assemble.forget("@ns/a")
    assemble.add("@ns/b", A, replace(one, step=2), 0.0)  # the refused step would be of no use without what was refused
    assemble.add("r", A, chunk(ones(1), (1, 8), layer="whole"), 0.0)
    assemble.add("r", B, chunk(ones(1), (1, 8), layer="v", step=2), 0.0)
    with pytest.raises(WireError, match="assembly_full"):
        assemble.add("r", A, chunk(ones(1), (1, 8), layer="u"), 0.0)
    assert len(list(assemble.expire(1000.0))) == 4
    assemble.add("@ns/a", A, three, 1000.0)


def test_where_no_further_layer_fits_those_that_were_begun_can_still_be_finished() -> None:
    assemble = assembler(max_open_layers=1)
    upper, lower = (chunk(ones(2), (2, 2), shard=Shard(ranges=(half,))) for half in ((0, 2), (2, 4)))
    assemble.add("r", A, upper, 0.0)
    assert assemble.add("r", B, lower, 0.0).snapshot is not None


def take(assemble: Assemble, run: str, *layers: str, now: float = 0.0) -> None:
    for layer in layers:
        assert assemble.add(run, A, chunk(ones(1), (1, 1), layer=layer), now).snapshot is not None


def test_all_runs_together_have_room_for_so_many_layers_and_a_namespace_for_half() -> None:
    assemble = assembler(max_layers=8, max_layers_per_run=3)
    take(assemble, "@ns/a", *"abc")
    take(assemble, "@ns/b", "a")
    with pytest.raises(WireError, match=r"too_many_layers: namespace 'ns' has 4 in all runs, which is its share"):
        take(assemble, "@ns/b", "b")
    with pytest.raises(WireError, match="too_many_layers"):
        take(assemble, "@ns/c", "a")
    take(assemble, "r", *"abc")
    take(assemble, "s", "a")
    for run in ("s", "t"):
        with pytest.raises(WireError, match="too_many_layers: all runs have 8; at most 8"):
            take(assemble, run, "b")
    assert assemble.add("r", A, chunk(ones(1), (1, 1), layer="a", step=2), 0.0).snapshot is not None, "it has its place"
    assemble.forget("@ns/a")
    take(assemble, "@ns/b", "b")
    take(assemble, "t", *"ab")


def test_a_run_from_the_history_takes_room_for_all_its_layers() -> None:
    assemble = assembler(max_layers=4, max_layers_per_run=4)
    assert assemble.add("r", A, chunk(ones(1), (1, 1), layer="a"), 0.0, {(x, "weight"): 1 for x in "abcd"}).settled
    with pytest.raises(WireError, match="too_many_layers"):
        take(assemble, "s", "a")
    assemble.forget("r")
    take(assemble, "s", "a")


def test_a_silent_run_gives_up_its_place_where_layers_or_a_namespace_have_none() -> None:
    def quota(namespace: str) -> Quota:
        return Quota(max_runs=2) if namespace == "ns" else NO_QUOTA

    assemble = Assemble(Limits(max_layers=8, max_layers_per_run=2, run_idle_seconds=10.0), Counter(), quota)
    take(assemble, "r", "a", now=0.0)
    take(assemble, "@ns/a", "a", now=1.0)
    assert assemble.idle_run(100.0) is None, "there is room"
    take(assemble, "@ns/b", "a", now=2.0)
    assert assemble.idle_run(100.0) == "@ns/a", "for others, not for this namespace"
    assert assemble.idle_run(100.0, {"@ns/a"}) == "@ns/b"
    for run in "stuv":
        take(assemble, run, "a", now=3.0)
    assert assemble.idle_run(100.0) == "r", "seven of eight layers: a run of two finds no room"
    assert assemble.idle_run(10.0) is None
