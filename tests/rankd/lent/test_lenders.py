"""Who may lend what: tokens, bounds, and what is counted as mapped."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest
from lending import SESSION, Memory, lend_of, num_mappings

from rankd.config import Limits
from rankd.lent import Lenders
from rankd_client.wire import Chunk, Lend, Lent, WireError


@pytest.fixture
def blocks() -> Iterator[list[Memory]]:
    blocks = [Memory(4096), Memory(100)]
    yield blocks
    for block in blocks:
        block.close()


def nothing() -> None:
    pass


def lenders_of(**limits: int) -> Lenders:
    return Lenders(Limits(**limits), Counter(), "arena.sock")


def lent(block: int, at: int, num_bytes: int = 4) -> Lent:
    return Lent(Chunk("w", 1, "float32", (1, 1), 4, 0, b""), block, at, num_bytes)


def refused(lenders: Lenders, lend: Lend, blocks: list[Memory], owner: Any = None) -> str:
    gc.collect()  # what earlier tests have left is not to go in between
    before = num_mappings()
    with pytest.raises(WireError) as caught:
        lenders.take(lend, [block.fd for block in blocks], owner, nothing)
    assert num_mappings() == before, "it is mapped, though it was refused"
    return caught.value.code


def test_what_is_lent_can_be_borrowed_until_its_push_connection_ends(blocks: list[Memory]) -> None:
    lenders = lenders_of()
    token = lenders.invite(SESSION)
    lender = lenders.take(lend_of(token, *blocks), [block.fd for block in blocks], None, nothing)
    lender.close = lambda: lenders.forget(lender)
    blocks[1].view[64:68] = b"abcd"
    loan = lenders.borrow(token, lent(1, 64))
    assert bytes(loan.view) == b"abcd"
    assert lenders.num_bytes == sum(block.size for block in blocks)
    loan.end()
    del loan
    mapped = num_mappings()
    lenders.dismiss(token)
    assert num_mappings() == mapped - 2 and lenders.num_bytes == 0
    with pytest.raises(WireError, match="not_lent"):
        lenders.borrow(token, lent(1, 64))


def test_a_loan_under_way_keeps_the_mapping_until_it_ends(blocks: list[Memory]) -> None:
    lenders = lenders_of()
    token = lenders.invite(SESSION)
    lender = lenders.take(lend_of(token, blocks[0]), [blocks[0].fd], None, nothing)
    loan = lenders.borrow(token, lent(0, 64))
    mapped = num_mappings()
    lenders.forget(lender)
    assert bytes(loan.view) == bytes(4) and num_mappings() == mapped
    loan.end()
    del loan
    assert num_mappings() == mapped - 1


def test_a_loan_whose_epoch_has_risen_is_not_confirmed(blocks: list[Memory]) -> None:
    lenders = lenders_of()
    token = lenders.invite(SESSION)
    lenders.take(lend_of(token, blocks[0]), [blocks[0].fd], None, nothing)
    loan = lenders.borrow(token, lent(0, 64))
    loan.confirm()
    blocks[0].set_epoch(2)
    with pytest.raises(WireError, match="loan_ended"):
        loan.confirm()


def test_tokens_are_of_one_connection_and_cannot_be_guessed(blocks: list[Memory]) -> None:
    lenders = lenders_of()
    token, other = lenders.invite(SESSION), lenders.invite(bytes(16))
    assert len({token, other}) == 2 and len(token) >= 32
    for lend in (lend_of("", *blocks), lend_of("x", *blocks), lend_of(other, *blocks)):
        assert refused(lenders, lend, blocks) == "unknown_token"
    mine = lenders.take(lend_of(token, blocks[0]), [blocks[0].fd], None, nothing)
    assert refused(lenders, lend_of(token, blocks[1], first_block=1), blocks[1:]) == "unknown_token"  # by another
    assert refused(lenders, lend_of(other, blocks[1], session=bytes(16)), blocks[1:], mine) == "unknown_token"
    lenders.dismiss(token)
    assert refused(lenders, lend_of(token, *blocks), blocks) == "unknown_token"


def test_blocks_come_in_order_each_with_its_descriptor(blocks: list[Memory]) -> None:
    lenders = lenders_of()
    token = lenders.invite(SESSION)
    assert refused(lenders, lend_of(token, blocks[0], first_block=1), blocks[:1]) == "bad_field"
    assert refused(lenders, lend_of(token, *blocks), blocks[:1]) == "bad_memory"
    assert refused(lenders, lend_of(token, blocks[0]), blocks) == "bad_memory"
    assert refused(lenders, lend_of(token, *blocks), blocks[::-1]) == "bad_memory"
    lender = lenders.take(lend_of(token, blocks[0]), [blocks[0].fd], None, nothing)
    lenders.take(lend_of(token, blocks[1], first_block=1), [blocks[1].fd], lender, nothing)
    assert len(lender.blocks) == 2


def test_one_bad_block_among_good_ones_leaves_none_mapped(blocks: list[Memory]) -> None:
    lenders = lenders_of()
    token = lenders.invite(SESSION)
    unsealed = Memory(seals=0)
    assert refused(lenders, lend_of(token, *blocks, unsealed), [*blocks, unsealed]) == "bad_memory"
    assert lenders.num_bytes == 0
    unsealed.close()


def test_no_client_and_not_all_of_them_together_lend_more_than_the_limits(blocks: list[Memory]) -> None:
    lenders = lenders_of(max_lent_bytes_per_connection=5000, max_lent_bytes=6000)
    first, second = lenders.invite(SESSION), lenders.invite(SESSION)
    huge = lend_of(first, sizes=(1 << 62,))  # the claim alone is refused, before anything is looked at
    assert refused(lenders, huge, blocks[:1]) == "too_much_lent"
    lender = lenders.take(lend_of(first, blocks[0]), [blocks[0].fd], None, nothing)
    more = Memory(2000)
    assert refused(lenders, lend_of(first, more, first_block=1), [more], lender) == "too_much_lent"
    assert refused(lenders, lend_of(second, more), [more]) == "too_much_lent"
    lenders.forget(lender)
    lenders.take(lend_of(second, more), [more.fd], None, nothing)
    more.close()


def test_without_a_socket_nobody_is_invited() -> None:
    assert Lenders(Limits(), Counter()).invite(SESSION) == ""
