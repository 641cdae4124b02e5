import math
import re
from typing import Any

import pytest

from rankd.detectors import DETECTORS, DetectConfig, make_detectors, make_notices

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"zero": "loud"}, "zero is 'loud'; expected one of info, warning, critical, off"),
    ({"effective_rank_drop": 3}, "effective_rank_drop is 3; expected one of info, warning, critical, off"),
    ({"min_readings": 0}, "min_readings is 0; expected a whole number from 1 to 1000"),
    ({"on_readings": True}, "on_readings is True; expected a whole number"),
    ({"off_readings": 2.0}, "off_readings is 2.0; expected a whole number"),
    ({"off_readings": 1001}, "off_readings is 1001; expected a whole number"),
    ({"ema_window": 0}, "ema_window"),
    ({"judged_roles": "weight"}, "judged_roles is 'weight'; expected some of weight, update, gradient, feature"),
    ({"judged_roles": ["sketch"]}, "judged_roles is ['sketch']; expected some of"),
    ({"feature_effective_rank_drop_scales": 3}, "feature_effective_rank_drop_scales is 3; expected 1 to 8 pairs"),
    *(
        ({"spectral_norm_growth_scales": scales}, f"spectral_norm_growth_scales is {scales!r}; expected 1 to 8 pairs")
        for scales in (
            *(3, [], [1.05, 0.1], [[1.05]], [[1.05, 0.1, 2]], [["1.05", 0.1]], [[1.0, 0.1]], [[10.5, 0.1]]),
            *([[1.05, 0.0]], [[math.nan, 0.1]], [[1.05, math.inf]], [[True, 0.1]], [[1.05, 0.1]] * 9),
        )
    ),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=lambda case: str(case)[:60])
def test_a_wrong_setting_is_named(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        DetectConfig(**settings)


def test_scales_come_as_a_file_gives_them() -> None:
    given: Any = [[1.05, 0.06], (1.15, 8e-2)]
    assert DetectConfig(effective_rank_drop_scales=given) == DetectConfig()


def test_each_rule_may_be_off_or_of_any_severity() -> None:
    config = DetectConfig(ema="off", spectral_norm_growth="off", zero="off", nonfinite="info")
    assert set(make_detectors(config)) == {"effective_rank_drop"}
    (notice,) = make_notices(config).values()
    verdict = notice.bad(3)
    assert verdict is not None and (verdict.rule, verdict.severity) == ("nonfinite", "info")
    assert set(make_detectors(DetectConfig())) == set(DETECTORS)


def test_roles_have_settings_of_their_own() -> None:
    config = DetectConfig()
    assert config.of_role("weight") is config
    features = config.of_role("feature")
    assert set(make_detectors(features)) == {"effective_rank_drop", "spectral_norm_growth"}
    assert features.effective_rank_drop_scales == config.feature_effective_rank_drop_scales
    assert make_detectors(config.of_role("gradient")) == {}
    assert set(make_detectors(DetectConfig(judged_roles=("gradient",)).of_role("gradient"))) == set(DETECTORS)
    assert make_detectors(DetectConfig(judged_roles=()).of_role("weight")) == {}
    assert make_notices(DetectConfig(zero="off").of_role("gradient")).keys() == {"nonfinite"}
    mild = DetectConfig(nonfinite="info").of_role("gradient")
    assert mild.severity("nonfinite") == "info", "what is milder already stays so"


def test_what_is_recorded_of_settings_is_what_it_was_until_there_is_more() -> None:
    assert not {"judged_roles", "feature_effective_rank_drop_scales"} & DetectConfig().recorded().keys()
    config = DetectConfig(judged_roles=("weight",), feature_effective_rank_drop_scales=[[1.5, 0.5]])  # type: ignore[arg-type]
    assert DetectConfig(**config.recorded()) == config


def test_settings_reach_the_rules() -> None:
    def fired(**settings: Any) -> int | None:
        detector = make_detectors(DetectConfig(**settings))["effective_rank_drop"]
        values = enumerate([100.0] * 200 + [85.0] * 40, 1000)
        return next((step for step, value in values if detector.update(value, step) is not None), None)

    assert fired() == 1203
    assert fired(on_readings=1) == 1201
    assert fired(min_readings=230) == 1231
    assert fired(effective_rank_drop_scales=[[1.05, 0.2]]) is None
    assert fired(effective_rank_drop_scales=[[1.001, 0.1]]) is None, "two readings, then the fall is out of sight"
    assert fired(effective_rank_drop_scales=[[1.001, 0.1]], on_readings=2) == 1202
    assert fired(effective_rank_drop_scales=[[9.0, 0.01]]) is None, "nothing that old was seen"
    assert fired(spectral_norm_growth="off", ema_alpha=0.5) == 1203


def test_memory_reaches_as_far_back_as_the_longest_scale() -> None:
    detector = make_detectors(DetectConfig(effective_rank_drop_scales=[[5.0, 0.5]]))["effective_rank_drop"]
    values = [100.0 if step < 1000 else 80.0 if step < 4000 else 50.0 for step in range(5000)]
    found = [v for step, value in enumerate(values) if (v := detector.update(value, step)) is not None]
    assert found[0].detail.endswith("compared with step 800"), "4001/5, long after the memory of the default would end"
