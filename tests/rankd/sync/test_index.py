"""In which order things go, and what is left out: pure files, no daemon."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from spooled import Spooled, chunk_of

from rankd.sync.found import Life, find_lives
from rankd.sync.index import Index
from rankd_client.spool.format import SpoolError
from rankd_client.wire import Reported, Shard, encode


def life_of(root: Path) -> Life:
    lives, faults = find_lives(root)
    assert len(lives) == 1 and faults == []
    return lives[0]


def steps_of(root: Path, layer: str = "a") -> list[tuple[int, list[int]]]:
    """(step, which sessions have something of it) of a layer."""
    index = Index(life_of(root))
    found = [(order[1], [place.session for place in places]) for order, places in index.steps((layer, "weight"))]
    index.close()
    return found


def write(root: Path, *steps: int, layer: str = "a", number: int = 0, **who: int) -> Spooled:
    writer = Spooled(root, session=bytes([number] * 16), **who)
    for step in steps:
        assert writer.keep(chunk_of(layer, step))
    return writer


def test_steps_come_in_the_order_in_which_they_were_pushed_over_all_files(tmp_path: Path) -> None:
    writer = write(tmp_path, *range(50))
    writer.close()
    assert len(list(writer.path.glob("*.spool"))) > 3
    assert steps_of(tmp_path) == [(step, [0]) for step in range(50)]


def test_a_run_that_went_back_is_told_as_it_was(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 2, 3, 4, 4).close()
    assert [step for step, _ in steps_of(tmp_path)] == [1, 2, 3, 2, 3, 4, 4]


def test_the_parts_of_a_step_come_together_though_one_process_missed_some(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 5, 2, 3, number=7, process_rank=0, world_size=2).close()
    write(tmp_path, 1, 3, 4, 5, 3, number=3, process_rank=1, world_size=2).close()
    both, first, second = [0, 1], [0], [1]
    expected = [(1, both), (2, first), (3, both), (4, second), (5, both), (2, first), (3, both)]
    assert steps_of(tmp_path) == expected


def shards(root: Path, *, is_written: bool) -> list[Spooled]:
    """Two processes at 10, 20, 30 and, after a return, at 20, 30, 40; the second one's disk missed 20 and 30 before.
    `is_written`: as trainers write it now."""
    writers = []
    before, after = [(step, 0) for step in (10, 20, 30)], [(step, 1) for step in (20, 30, 40)]
    for process_rank, pushed in enumerate(([*before, *after], [before[0], *after])):
        writer = Spooled(root, session=bytes([process_rank] * 16), process_rank=process_rank, world_size=2)
        for step, num_returns in pushed:
            shard = Shard(rectangles=((2 * process_rank, 2 * process_rank + 2, 0, 4),))
            body = bytes([num_returns] * 32)
            assert writer.keep(chunk_of("a", step, shard=shard), body, num_returns if is_written else None)
        writer.close()
        writers.append(writer)
    return writers


def test_parts_from_before_and_after_a_return_are_not_joined_though_one_process_missed_it(tmp_path: Path) -> None:
    shards(tmp_path, is_written=True)
    both, first = [0, 1], [0]
    expected = [(10, both), (20, first), (30, first), (20, both), (30, both), (40, both)]
    assert steps_of(tmp_path) == expected


def test_where_it_was_not_written_parts_are_not_joined_by_guess(tmp_path: Path) -> None:
    shards(tmp_path, is_written=False)
    assert all(len(sessions) == 1 for _, sessions in steps_of(tmp_path))


def test_nothing_goes_that_is_older_than_what_went(tmp_path: Path) -> None:
    write(tmp_path, 1, 2, 3, 4).close()
    index = Index(life_of(tmp_path))
    index.progress[0].mark([2])
    index.close()
    assert [step for step, _ in steps_of(tmp_path)] == [4]
    index = Index(life_of(tmp_path))
    assert (index.lines[0].num_done, index.lines[0].num_left) == (3, 1)
    index.close()


def test_numbers_and_snapshots_of_a_layer_are_one_line(tmp_path: Path) -> None:
    writer = Spooled(tmp_path)
    for step in (1, 2):
        header, body = map(bytes, encode(Reported("a", step, {"x": 1.0})))
        writer.session.keep(("a", "weight", "numbers"), step, header, body, lambda: None)
        writer.keep(chunk_of("a", step))
    writer.close()
    index = Index(life_of(tmp_path))
    orders = [order for order, _ in index.steps(("a", "weight"))]
    assert orders == [(0, 1, 0), (0, 1, 1), (0, 2, 0), (0, 2, 1)] and index.version == 3
    index.close()


def test_the_version_is_what_the_dtypes_need(tmp_path: Path) -> None:
    writer = Spooled(tmp_path)
    for dtype, version in (("float32", 1), ("int8", 2)):
        writer.keep(chunk_of(dtype, 1, dtype=dtype))
        index = Index(life_of(tmp_path))
        assert index.version == version
        index.close()
    writer.close()


def test_of_a_file_that_is_damaged_what_is_before_and_in_others_goes(tmp_path: Path) -> None:
    writer = write(tmp_path, *range(16))
    writer.close()
    path = writer.path / "03.spool"
    content = bytearray(path.read_bytes())
    content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    path.write_bytes(content)
    index = Index(life_of(tmp_path))
    (fault,) = index.lines[0].faults
    index.close()
    assert str(path) in str(fault) and "damaged from here on" in str(fault)
    lost = set(range(16)) - {step for step, _ in steps_of(tmp_path)}
    assert lost and lost < {9, 11, 13, 15}


def test_a_progress_that_cannot_be_told_ships_nothing(tmp_path: Path) -> None:
    writer = write(tmp_path, 1, 2, 3)
    writer.close()
    index = Index(life_of(tmp_path))
    index.progress[0].mark([0, 1])
    index.close()
    content = bytearray((writer.path / "done").read_bytes())
    content[0] ^= 1
    (writer.path / "done").write_bytes(content)
    with pytest.raises(SpoolError, match="/done', offset 0"):
        Index(life_of(tmp_path))


def test_many_files_are_not_all_open(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path, *range(1 << 7), number=number, process_rank=number, world_size=12).close()
    found = steps_of(tmp_path)
    assert [step for step, _ in found] == list(range(1 << 7)) and all(len(who) == 12 for _, who in found)


@pytest.mark.parametrize(
    ("second", "num_lives"),
    [
        ({"number": 1, "process_rank": 1, "world_size": 2}, 1),
        ({"number": 1, "process_rank": 0, "world_size": 2}, 2),
        ({"number": 1, "process_rank": 1, "world_size": 4}, 2),
    ],
    ids=["another process", "the same process", "a larger job"],
)
def test_sessions_that_are_one_job(tmp_path: Path, second: dict[str, int], num_lives: int) -> None:
    writers = [write(tmp_path, 1, process_rank=0, world_size=2), write(tmp_path, 1, **second)]
    for writer in writers:
        writer.keep(chunk_of("a", 2))
        writer.close()
    lives, _ = find_lives(tmp_path)
    assert len(lives) == num_lives


def test_a_job_that_begins_when_the_other_has_ended_is_another(tmp_path: Path) -> None:
    first = write(tmp_path, 1, process_rank=1, world_size=2)
    first.close()
    for path in first.path.glob("*.spool"):
        os.utime(path, (1.0, 1.0))
    write(tmp_path, 1, number=1, process_rank=0, world_size=2).close()
    assert len(find_lives(tmp_path)[0]) == 2


def test_what_is_no_session_is_passed_over_and_a_damaged_head_named(tmp_path: Path) -> None:
    write(tmp_path, 1).close()
    (tmp_path / "notes").mkdir()
    (tmp_path / f"{'a' * 32}.new").mkdir()
    (tmp_path / ("b" * 32)).mkdir()
    lives, (fault,) = find_lives(tmp_path)
    assert len(lives) == 1 and f"{'b' * 32}/head': cannot be read" in str(fault)
