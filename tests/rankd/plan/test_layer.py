import pytest

from rankd.plan.layer import INTERVAL_WEIGHT, MAX_PATIENCE, MAX_SLOWING, PATIENCE, Layer


def pushed(steps: list[int], interval: float = 1.0) -> Layer:
    """Pushed at these steps and each time measured."""
    layer = Layer("r", 0, 0.0)
    for number, step in enumerate(steps):
        layer.arrive(interval * number, step)
        layer.take()
    return layer


def test_a_pause_of_an_hour_hardly_slows_a_layer() -> None:
    layer = pushed(list(range(20)))
    layer.arrive(3600.0, 21)
    assert layer.interval == pytest.approx(1 + INTERVAL_WEIGHT * (MAX_SLOWING - 1))
    assert layer.rate(3600.0) > 0.5
    assert layer.rate(3700.0) == pytest.approx(1 / 100), "while it lasts it counts"


@pytest.mark.parametrize(
    ("steps", "most"),
    [
        ([], 1),
        ([7], 1),
        (list(range(50)), 1),
        (list(range(60)), 2),
        (list(range(110)), 4),
        (list(range(300)), 8),
        (list(range(900)), 32),
        (list(range(9000)), 32),
        (list(range(0, 30_000, 100)), 8),  # pushes count, not steps
        (list(range(10_000, 10_110)), 4),  # first seen late: by what there is to compare with
        ([*range(900), *range(900, 3000, 100)], 1),  # rarer than it was
        ([*range(900), *range(100, 150)], 4),  # gone back to a checkpoint
        ([*range(900), 900], 32),
        ([5] * 900, 1),
    ],
)
def test_readings_are_never_so_sparse_that_a_collapse_goes_unseen(steps: list[int], most: int) -> None:
    layer = pushed(steps)
    assert layer.most_every(32) == most
    assert layer.most_every(3) == min(3, most) and layer.most_every(1) == 1


def test_patience_doubles_where_a_layer_wavers_not_where_it_only_goes_down() -> None:
    layer = Layer("r", 0, 0.0)
    for every in (2, 4, 8):
        layer.change(0.0, "exact", every, down=True)
    assert layer.patience == 2 * PATIENCE
    for _ in range(9):
        layer.change(0.0, "exact", 4, down=False)
        layer.change(0.0, "exact", 8, down=True)
    assert layer.patience == MAX_PATIENCE
    layer.change(0.0, "exact", 4, down=False)
    layer.change(1e6, "exact", 8, down=True)
    assert layer.patience == PATIENCE, "a long rest"
