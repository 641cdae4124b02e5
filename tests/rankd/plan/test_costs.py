import pytest

from rankd.plan.costs import GUESSES, MAX_SHAPES, Costs, Size

BIG = Size(4096, 4096)


@pytest.mark.parametrize("device", GUESSES)
def test_guesses_are_in_order_and_grow(device: str) -> None:
    costs = Costs()
    for size in (Size(2048, 2048), BIG, Size(4096, 11008), Size(11008, 4096)):
        norms, estimate, exact = (costs.predict(device, tier, size) for tier in ("norms", "estimate", "exact"))
        assert 0 < norms < estimate < exact
        assert costs.predict(device, "exact", Size(2 * size.rows, 2 * size.cols)) > 4 * exact
    assert costs.predict(device, "exact", Size(7, 900)) == costs.predict(device, "exact", Size(900, 7))
    assert costs.predict(device, "exact", Size(1, 1)) > 0


def test_guesses_are_near_what_was_measured() -> None:
    """Of docs and findings: 48 matrices of GPT-2-small in 5.6 CPU-seconds, a 4096 × 4096 on an H100 in 0.12 s."""
    gpt2 = [Size(768, 2304), Size(768, 768), Size(768, 3072), Size(3072, 768)] * 12
    assert sum(Costs().predict("cpu", "exact", size) for size in gpt2) == pytest.approx(5.6, rel=0.5)
    assert Costs().predict("cuda", "exact", BIG) == pytest.approx(0.12, rel=0.2)


def test_a_stack_costs_as_many_times_as_it_has_matrices() -> None:
    costs = Costs()
    assert costs.predict("cpu", "exact", Size(512, 512, 8)) == pytest.approx(
        8 * costs.predict("cpu", "exact", Size(512, 512)), rel=0.02
    )


def test_a_device_of_another_kind_counts_as_a_cpu() -> None:
    assert Costs().predict("mps", "exact", BIG) == Costs().predict("cpu", "exact", BIG)


def test_what_was_seen_corrects_the_shape_the_tier_and_a_little_the_others() -> None:
    costs, fresh = Costs(), Costs()
    other = Size(1024, 1024)
    for _ in range(30):
        costs.learn("cpu", "exact", BIG, 4 * fresh.predict("cpu", "exact", BIG))
    assert costs.predict("cpu", "exact", BIG) == pytest.approx(4 * fresh.predict("cpu", "exact", BIG), rel=0.15)
    for tier in ("exact", "norms"):  # the same tier; another one, of which nothing was seen
        assert 3 < costs.predict("cpu", tier, other) / fresh.predict("cpu", tier, other) < 4.01
    assert costs.predict("cuda", "exact", BIG) == fresh.predict("cuda", "exact", BIG)


def test_one_slow_measurement_changes_little() -> None:
    costs = Costs()
    usual = costs.predict("cpu", "exact", BIG)
    for _ in range(50):
        costs.learn("cpu", "exact", BIG, usual)
    costs.learn("cpu", "exact", BIG, 5 * usual)
    assert costs.predict("cpu", "exact", BIG) < 1.2 * usual
    costs.learn("cpu", "exact", BIG, 0.0)
    assert costs.predict("cpu", "exact", BIG) > 0


def test_memory_is_bounded() -> None:
    costs = Costs()
    for rows in range(1, MAX_SHAPES + 100):
        costs.learn("cpu", "exact", Size(rows, 3), 1.0)
    assert len(costs._of_shape) == MAX_SHAPES
