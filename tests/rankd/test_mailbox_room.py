"""How much is handed out at once, and that nobody waits for ever for it."""

from collections import Counter

import numpy as np
import pytest

from rankd.mailbox import Mailbox
from rankd.records import Snapshot


@pytest.fixture(autouse=True)
def _small_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankd.mailbox.MAX_MEASURING_BYTES", 10)
    monkeypatch.setattr("rankd.mailbox.SMALL_BYTES", 2)


def snapshot(layer: str, num_bytes: int, run: str = "r", step: int = 1) -> Snapshot:
    return Snapshot(run, layer, step, (1, num_bytes), "float32", "float32", np.zeros(num_bytes, np.uint8))


def mailbox() -> Mailbox:
    return Mailbox(1000, 9, Counter())


def handed_out(box: Mailbox) -> list[Snapshot]:
    """All that can be had now."""
    taken = []
    while (item := box._next()) is not None:
        taken.append(item)
    return taken


def names(items: list[Snapshot]) -> list[str]:
    return [item.layer for item in items]


def test_large_ones_are_bounded_together_and_small_ones_pass_them_by() -> None:
    box = mailbox()
    for layer, num_bytes in (("a", 6), ("b", 8), ("c", 2), ("d", 20), ("e", 3)):
        box.put(snapshot(layer, num_bytes))
    first = handed_out(box)
    assert names(first) == ["a", "c"], "e is large, and does not pass b by"
    box.done(first[0])
    second = handed_out(box)
    assert names(second) == ["b"]
    box.done(second[0])
    third = handed_out(box)
    assert names(third) == ["d"], "beyond the bound alone, but for small ones"
    box.done(third[0])
    assert names(handed_out(box)) == ["e"]


def test_several_gpus_are_handed_so_much_each_as_far_as_so_much_may_wait() -> None:
    for num_workers, max_bytes, expected in ((1, 1000, "a"), (3, 1000, "abc"), (3, 20, "ab"), (3, 5, "ab")):
        box = Mailbox(max_bytes, 9, Counter(), num_workers=num_workers)
        handed = []
        for layer in "abcd":
            box.put(snapshot(layer, min(10, max_bytes)))
            handed += handed_out(box)
        assert names(handed) == list(expected)


def test_the_largest_is_served_however_many_others_come() -> None:
    """Other runs push large and small layers without end, so that there is never a moment without a large one; it has
    its turn even so."""
    box = mailbox()
    large: list[Snapshot] = []
    for step in range(1, 12):
        if step == 2:
            box.put(snapshot("largest", 20, "a"))
        for run in "abc":
            box.put(snapshot("small", 1, run, step))
        for run in "bc":
            box.put(snapshot("large", 4, run, step))
        for item in handed_out(box):
            if item.layer == "largest":
                return
            box.done(item) if item.layer == "small" else large.append(item)
        box.done(large.pop(0))
    pytest.fail("it never had its turn")


def test_one_that_is_given_up_holds_up_nobody() -> None:
    box = Mailbox(25, 9, Counter())
    box.put(snapshot("out", 8))
    assert names(handed_out(box)) == ["out"]
    box.put(snapshot("held", 20, "a"))
    assert handed_out(box) == []
    assert names([gone.snapshot for gone in box.put(snapshot("newer", 10, "b"))]) == ["held"], "for want of room"
    box.done(snapshot("out", 8))
    assert names(handed_out(box)) == ["newer"]
