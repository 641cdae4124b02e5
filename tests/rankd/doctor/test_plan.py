from typing import Any

from rankd.doctor.plan import check_plan

WELL = {
    "layers": {"exact": 36, "estimate": 12},
    "predicted_share": 0.31,
    "max_share": 0.5,
    "lag_seconds": 0.2,
}


def plan(**changes: Any) -> dict[str, Any]:
    return {**WELL, **changes}


def test_a_plan_that_is_kept() -> None:
    found = check_plan(WELL)
    assert (found.check, found.ok) == ("plan", True)
    assert found.text == "layers measured: 36 exact, 12 estimate; predicted share 0.31 of 0.50, lag 0.2 s"
    assert check_plan(plan(lag_seconds=900.0)).ok, "one huge layer, and nobody waits"
    thinned = check_plan(plan(num_thinned=12, max_every=4))
    assert thinned.ok and "(12 of them not at every push, but once in 4 at least; norms alone between)" in thinned.text


def test_measuring_that_lags_behind_or_wants_too_much_is_a_problem() -> None:
    lagging = check_plan(plan(lag_seconds=40.0, num_lagging=7))
    assert not lagging.ok and "lag 40.0 s; 7 layers are pushed faster" in lagging.text
    assert "every_steps" in lagging.advice and "--device" in lagging.advice and "--tier norms" in lagging.advice
    assert not check_plan(plan(predicted_share=0.7)).ok
    assert check_plan(plan(predicted_share=0.55)).ok


def test_another_version_may_tell_other_things() -> None:
    assert check_plan({}).text == "layers measured: none yet; predicted share 0.00 of 0.00, lag 0.0 s"
    assert check_plan({"layers": 3, "lag_seconds": None, "num_lagging": "x", "max_every": []}).ok
