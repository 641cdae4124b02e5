"""What was dealt with, over any end of a sync."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankd.sync.progress import DAMAGED, INCOMPLETE, Progress
from rankd_client.spool.format import SpoolError


def numbers_in(session: Path) -> set[int]:
    progress = Progress(session)
    try:
        return progress.numbers
    finally:
        progress.close()


def marked(session: Path, *numbers: int) -> bytes:
    progress = Progress(session)
    progress.mark(list(numbers))
    progress.flush()
    progress.close()
    return (session / "done").read_bytes()


def test_an_entry_in_bytes(tmp_path: Path) -> None:
    assert marked(tmp_path, 5) == bytes.fromhex("05000000000000000dd1c22d")
    content = marked(tmp_path, 7, (1 << 62) - 1)
    assert content[:8] == (5).to_bytes(8, "little") and len(content) == 36
    assert numbers_in(tmp_path) == {5, 7, (1 << 62) - 1}


def test_what_was_left_out_is_known_by_its_two_upper_bits_and_is_not_dealt_with(tmp_path: Path) -> None:
    progress = Progress(tmp_path)
    progress.mark([4])
    progress.mark([5, 6], DAMAGED)
    progress.mark([7], INCOMPLETE)
    progress.mark([6], DAMAGED)  # once is enough
    progress.close()
    content = (tmp_path / "done").read_bytes()
    assert [content[at : at + 8].hex() for at in range(0, len(content), 12)] == [
        "0400000000000000",
        "0500000000000080",
        "0600000000000080",
        "0700000000000040",
    ]
    progress = Progress(tmp_path)
    assert (progress.numbers, progress.left_out) == ({4}, {5: DAMAGED, 6: DAMAGED, 7: INCOMPLETE})
    progress.mark([6])
    progress.close()
    progress = Progress(tmp_path)
    assert (progress.numbers, progress.left_out) == ({4, 6}, {5: DAMAGED, 7: INCOMPLETE})
    progress.close()


def test_an_end_at_any_byte_forgets_what_was_not_whole_and_goes_on(tmp_path: Path) -> None:
    content = marked(tmp_path, 1, 2, 3)
    for size in range(len(content) + 1):
        (tmp_path / "done").write_bytes(content[:size])
        whole = set(range(1, size // 12 + 1))
        assert numbers_in(tmp_path) == whole
        marked(tmp_path, 9)
        assert numbers_in(tmp_path) == whole | {9}


@pytest.mark.parametrize("tail", [bytes(12), bytes(5), bytes(600), b"\xff" * 24])
def test_a_tail_that_never_came_to_the_disk_counts_for_nothing(tmp_path: Path, tail: bytes) -> None:
    content = marked(tmp_path, 1, 2)
    (tmp_path / "done").write_bytes(content + tail)
    assert numbers_in(tmp_path) == {1, 2}


def test_damage_before_the_end_is_named(tmp_path: Path) -> None:
    content = bytearray(marked(tmp_path, 1, 2, 3))
    for at in range(24):
        damaged = bytearray(content)
        damaged[at] ^= 4
        (tmp_path / "done").write_bytes(damaged)
        with pytest.raises(SpoolError, match=f"/done', offset {at // 12 * 12}: damaged"):
            Progress(tmp_path)


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "done").mkdir()
    with pytest.raises(SpoolError, match="/done': cannot be written"):
        Progress(tmp_path)
