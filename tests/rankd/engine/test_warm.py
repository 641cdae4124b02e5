import threading

import torch

from rankd.engine import WarmStarts
from rankd.engine.warm import ENTRY_BYTES


def test_the_newest_vector_of_each_key() -> None:
    warm = WarmStarts()
    assert warm.get("a") is None
    warm.put("a", torch.tensor([1.0, 2.0]))
    warm.put("b", torch.tensor([3.0]))
    warm.put("a", torch.tensor([4.0, 5.0, 6.0]))
    found = warm.get("a")
    assert found is not None and found.dtype == torch.bfloat16 and found.tolist() == [4, 5, 6]
    assert warm.get("b") is not None


def test_it_keeps_copies() -> None:
    warm, vector = WarmStarts(), torch.ones(3, dtype=torch.bfloat16)
    warm.put("a", vector)
    vector.zero_()
    found = warm.get("a")
    assert found is not None and found.tolist() == [1, 1, 1]


def test_the_longest_unused_go_first() -> None:
    warm = WarmStarts(max_bytes=3 * (ENTRY_BYTES + 1) + 20)  # 10 elements of three matrices
    for key in ("a", "b", "c"):
        warm.put(key, torch.ones(3))
    warm.put("a", torch.ones(3))
    warm.put("d", torch.ones(3))
    assert [warm.get(key) is not None for key in "abcd"] == [True, False, True, True]
    warm.put("e", torch.ones(ENTRY_BYTES * 2))
    assert all(warm.get(key) is None for key in "abcde"), "one that is larger than all room is not kept"
    warm.put("a", torch.ones(10))
    assert warm.get("a") is not None


def test_tiny_matrices_are_bounded_in_number() -> None:
    warm = WarmStarts(max_bytes=10 * ENTRY_BYTES)
    for number in range(100):
        warm.put(str(number), torch.ones(1))
    assert sum(warm.get(str(number)) is not None for number in range(100)) == 9


def test_any_thread_may_call() -> None:
    warm = WarmStarts(max_bytes=(2 * 5 + 2 + ENTRY_BYTES) * 8)

    def work(name: str) -> None:
        for count in range(200):
            warm.put(f"{name}{count % 7}", torch.ones(5))
            warm.get(f"{name}{(count + 1) % 7}")

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    kept = [key for name in "abcd" for key in (f"{name}{count}" for count in range(7)) if warm.get(key) is not None]
    assert len(kept) == 8
