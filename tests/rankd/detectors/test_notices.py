"""Non-finite and all-zero layers: one notice from the first bad measurement to the first good one after it."""

import pytest

from rankd.detectors import DEFAULT_CONFIG, make_notices


@pytest.mark.parametrize("rule", ["nonfinite", "zero"])
def test_one_notice_until_a_good_measurement_that_is_not_older(rule: str) -> None:
    notice = make_notices(DEFAULT_CONFIG)[rule]
    assert notice.good(5, went_back=False) is None
    firing = notice.bad(10)
    assert firing is not None
    assert (firing.rule, firing.state, firing.severity, firing.metric) == (rule, "firing", "critical", None)
    assert notice.bad(11) is None
    assert notice.good(9, went_back=False) is None, "measured late: from before the firing"
    assert notice.good(10, went_back=False) is None, "measured late: the weights of step 11 are bad"
    ended = notice.good(11, went_back=False)
    assert ended is not None
    assert (ended.state, ended.severity) == ("resolved", "critical")
    assert notice.good(12, went_back=False) is None
    assert notice.bad(13) is not None


def test_a_run_that_went_back_ends_it() -> None:
    notice = make_notices(DEFAULT_CONFIG)["nonfinite"]
    notice.bad(10)
    ended = notice.good(3, went_back=True)
    assert ended is not None and ended.state == "resolved"
