"""What pushing costs asks for an interval: longer soon, shorter only where that would clearly do."""

from rankd.costs import CHEAP_SECONDS, Costs


def test_the_first_time_at_once_then_only_what_lasts() -> None:
    costs = Costs()
    assert costs.review(4, 6, 0.0) == 4
    assert costs.review(64, 96, 1.0) == 4, "one push that was held up"
    assert costs.review(6, 8, 2.0) == 6
    assert costs.review(12, 16, 3.0) == 6
    assert costs.review(12, 16, 4.0) == 12


def test_shorter_only_after_a_calm_time_without_a_break() -> None:
    costs = Costs()
    costs.review(16, 24, 0.0)
    for now in range(1, 201):  # each time for not quite long enough
        assert costs.review(8, 16 if now % int(CHEAP_SECONDS) == 0 else 8, float(now)) == 16
    began = 201.0
    assert costs.review(4, 6, began) == 16
    assert costs.review(6, 8, began + 1) == 16
    assert costs.review(4, 6, began + CHEAP_SECONDS) == 8, "the longest that was asked for meanwhile"


def test_no_limit_asks_for_nothing_and_forgets_what_it_asked_for() -> None:
    costs = Costs()
    assert costs.review(0, 0, 0.0) == 0
    assert costs.review(3, 4, 1.0) == 0 and costs.review(3, 4, 2.0) == 3
    assert costs.review(0, 0, 3.0) == 3
    assert costs.review(0, 0, 3.0 + CHEAP_SECONDS) == 0
