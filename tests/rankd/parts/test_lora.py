from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rankd.parts.lora import ENTRY_BYTES, Pairs, lora_base, lora_core
from rankd.records import Snapshot


@pytest.mark.parametrize(
    ("layer", "product", "side"),
    [
        ("base.q_proj.lora_A.default.weight", "base.q_proj.lora_BA.default.weight", "A"),
        ("base.q_proj.lora_B.default.weight", "base.q_proj.lora_BA.default.weight", "B"),
        ("q_proj.lora_A.weight", "q_proj.lora_BA.weight", "A"),
        ("q_proj.lora_B", "q_proj.lora_BA", "B"),
        ("q_proj.lora_a.weight", "q_proj.lora_ba.weight", "A"),
        ("q_proj.lora_b.weight", "q_proj.lora_ba.weight", "B"),
        ("wte.lora_embedding_A.default", "wte.lora_embedding_BA.default", "A"),
        ("wte.lora_embedding_B.default", "wte.lora_embedding_BA.default", "B"),
        ("lora_A.x.lora_B.weight", "lora_A.x.lora_BA.weight", "B"),
    ],
)
def test_factors_are_known_by_their_names(layer: str, product: str, side: str) -> None:
    assert lora_base(layer) == (product, side)


@pytest.mark.parametrize("layer", ["", ".", "q_proj.weight", "lora_AB.weight", "my_lora_A.weight", "x.lora_BA.weight"])
def test_others_are_no_factors(layer: str) -> None:
    assert lora_base(layer) is None


def factors(r: int, m: int, n: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(r * m + n)
    double = torch.float64
    a, b = torch.randn(r, n, generator=generator, dtype=double), torch.randn(m, r, generator=generator, dtype=double)
    return a.to(dtype), b.to(dtype)


def check_core(a: torch.Tensor, b: torch.Tensor) -> None:
    """Its singular values are those of the product in float64, beside zeros."""
    core = lora_core(a, b)
    expected = torch.linalg.svdvals(b.double().flatten(1) @ a.double().flatten(1))
    values = torch.linalg.svdvals(core)
    assert core.dtype == torch.float64 and max(core.shape) <= a.shape[0]
    assert torch.allclose(values, expected[: len(values)], rtol=1e-12, atol=1e-13 * float(expected[0]))
    assert not (expected[len(values) :] > 1e-13 * expected[0]).any()


@pytest.mark.parametrize(
    ("r", "m", "n"),
    [(8, 64, 48), (1, 30, 20), (16, 16, 16), (32, 8, 64), (32, 64, 8), (32, 8, 5), (4, 1, 9), (1, 1, 1)],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_the_core_has_the_products_singular_values(r: int, m: int, n: int, dtype: torch.dtype) -> None:
    check_core(*factors(r, m, n, dtype))


@pytest.mark.parametrize("scale_a", [1e-200, 1e-30, 1e30])
@pytest.mark.parametrize("scale_b", [1e-30, 1e30, 1e200])
def test_scales_of_factors_are_no_matter(scale_a: float, scale_b: float) -> None:
    a, b = factors(8, 40, 30, torch.float64)
    values = torch.linalg.svdvals(lora_core(a * scale_a, b * scale_b))
    assert torch.allclose(values / (scale_a * scale_b), torch.linalg.svdvals(b @ a)[:8], rtol=1e-11)


def test_dependent_factors() -> None:
    a, b = factors(8, 40, 30, torch.float64)
    a[4:], b[:, 1] = a[:4], b[:, 0]
    check_core(a, b)
    assert int((torch.linalg.svdvals(lora_core(a, b)) > 1e-10).sum()) == int(torch.linalg.matrix_rank(b @ a))


def test_factors_of_convolutions() -> None:
    a, b = factors(4, 10, 27)
    check_core(a.reshape(4, 3, 3, 3), b.reshape(10, 4, 1, 1))


def test_a_zero_factor_gives_a_zero_core() -> None:
    a, b = factors(4, 10, 3)
    for core in (lora_core(a, b * 0), lora_core(a * 0, b)):
        assert core.shape == (4, 3) and not core.any()


def test_factors_stay_as_they_are() -> None:
    a, b = factors(4, 10, 20, torch.float64)
    before = a.clone(), b.clone()
    assert not lora_core(a.requires_grad_(), b.requires_grad_()).requires_grad
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize(
    "shapes", [((4, 5), (6, 3)), ((4,), (6, 4)), ((4, 5), (4,)), ((0, 5), (6, 0)), ((4, 0), (6, 4))]
)
def test_factors_that_do_not_fit_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"expected \(r, n\)"):
        lora_core(torch.ones(shapes[0]), torch.ones(shapes[1]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nothing_that_is_not_finite_is_decomposed(bad: float) -> None:
    a, b = factors(4, 10, 20)
    b[3, 1] = bad
    with pytest.raises(ValueError, match="expected finite"):
        lora_core(a, b)


def snapshot(side: str, step: int = 1, base: str = "q", run: str = "r", num_bytes: int = 8, **more: Any) -> Snapshot:
    shape = (2, 6) if side == "A" else (5, 2)
    data = np.zeros(num_bytes, np.uint8)
    return Snapshot(run, f"{base}.lora_{side}.weight", step, shape, "float32", "float32", data, **more)


def pairs(max_bytes: int = 1 << 20) -> Pairs:
    return Pairs(max_bytes, Counter())


@pytest.mark.parametrize("order", ["AB", "BA"])
def test_two_factors_of_a_step_are_a_pair(order: str) -> None:
    waiting = pairs()
    first, second = snapshot(order[0]), snapshot(order[1])
    assert waiting.add(first) is None and len(waiting) == 1
    found = waiting.add(second)
    assert found is not None and [factor.layer[7] for factor in found] == ["A", "B"]
    assert len(waiting) == 0 and waiting.num_bytes == 0


def test_only_factors_of_the_same_run_role_product_and_step_are_paired() -> None:
    waiting = pairs()
    waiting.add(snapshot("A"))
    assert waiting.add(snapshot("B", run="other")) is None
    assert waiting.add(snapshot("B", base="k")) is None
    assert waiting.add(snapshot("B", step=2)) is None
    assert waiting.add(Snapshot("r", "q.weight", 1, (2, 2), "float32", "", np.zeros(16, np.uint8))) is None
    assert len(waiting) == 4 and waiting.num_bytes == 4 * (8 + ENTRY_BYTES)


def test_gradients_of_factors_have_no_product() -> None:
    waiting = pairs()
    assert waiting.add(snapshot("A", role="gradient")) is None
    assert waiting.add(snapshot("B", role="gradient")) is None
    assert len(waiting) == 0


def test_the_newest_factor_is_kept_and_a_late_one_is_awaited() -> None:
    waiting = pairs()
    waiting.add(snapshot("A", 1))
    newest = snapshot("A", 2)
    waiting.add(newest)
    assert len(waiting) == 1
    assert waiting.add(snapshot("B", 1)) is None
    found = waiting.add(snapshot("B", 2))
    assert found is not None and found[0] is newest
    assert len(waiting) == 0 and not waiting.counters


def test_what_waits_is_bounded_and_the_oldest_go() -> None:
    waiting = pairs(max_bytes=3 * (8 + ENTRY_BYTES))
    for name in "abcd":
        waiting.add(snapshot("A", base=name))
    assert len(waiting) == 3 and waiting.counters == {"dropped_lora_factors": 1}
    assert waiting.add(snapshot("B", base="b")) is not None
    assert waiting.add(snapshot("B", base="a")) is None


def test_a_factor_larger_than_all_room_is_dropped() -> None:
    waiting = pairs(max_bytes=100)
    waiting.add(snapshot("A"))
    assert len(waiting) == 0 and waiting.num_bytes == 0 and waiting.counters["dropped_lora_factors"] == 1


@pytest.mark.parametrize("notice", [{"finite": False}, {"zero": True}])
@pytest.mark.parametrize("side", ["A", "B"])
def test_a_notice_ends_the_wait(notice: dict[str, bool], side: str) -> None:
    waiting = pairs()
    waiting.add(snapshot("A", 1))
    assert waiting.add(snapshot(side, 2, num_bytes=0, **notice)) is None
    assert len(waiting) == 0 and waiting.num_bytes == 0


def test_factors_that_do_not_fit_are_counted() -> None:
    waiting = pairs()
    waiting.add(Snapshot("r", "q.lora_A.weight", 1, (3, 6), "float32", "", np.zeros(8, np.uint8)))
    assert waiting.add(snapshot("B")) is None
    assert len(waiting) == 0 and waiting.counters == {"dropped_lora_misfits": 1}


ARRIVALS = st.tuples(st.sampled_from("AB"), st.integers(1, 3), st.sampled_from("qk"), st.sampled_from("rs"))


@given(st.lists(st.tuples(ARRIVALS, st.integers(0, 3000), st.booleans()), max_size=30), st.integers(0, 8000))
def test_any_arrivals_stay_within_bounds_and_pair_alike(
    arrivals: list[tuple[tuple[str, int, str, str], int, bool]], max_bytes: int
) -> None:
    waiting = pairs(max_bytes)
    for place, num_bytes, zero in arrivals:
        found = waiting.add(snapshot(*place, num_bytes=0 if zero else num_bytes, zero=zero))
        assert waiting.num_bytes <= max_bytes and len(waiting) <= 8
        if found is not None:
            a, b = found
            assert (a.run, a.role, a.step) == (b.run, b.role, b.step)
            assert a.layer.replace("lora_A", "lora_B") == b.layer
    assert (len(waiting) == 0) == (waiting.num_bytes == 0)
