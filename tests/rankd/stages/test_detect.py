from rankd.judge import DetectConfig
from rankd.records import Measurement
from rankd.stages.detect import Detect


def measurement(run: str, step: int, finite: bool = True) -> Measurement:
    metrics = dict.fromkeys(("stable_rank", "effective_rank", "spectral_norm"), 4.0 if finite else None)
    return Measurement(run, "w", step, (8, 8), finite, False, metrics)


def test_alerts_once_a_change_of_state_and_per_run() -> None:
    detect = Detect(DetectConfig())
    assert detect(measurement("x", 1)) == []
    (fired,) = detect(measurement("x", 2, finite=False))
    assert (fired.rule, fired.state, fired.severity, fired.run, fired.step) == (
        "nonfinite",
        "firing",
        "critical",
        "x",
        2,
    )
    assert detect(measurement("x", 3, finite=False)) == []
    assert detect(measurement("y", 3)) == []
    (ended,) = detect(measurement("x", 4))
    assert (ended.alert_id, ended.state) == (fired.alert_id, "resolved")


def test_a_forgotten_run_begins_anew() -> None:
    detect = Detect(DetectConfig())
    assert len(detect(measurement("x", 2, finite=False))) == 1
    detect.forget("x")
    detect.forget("unknown")
    assert len(detect(measurement("x", 3, finite=False))) == 1


def test_goes_on_from_what_is_recorded() -> None:
    detect = Detect(DetectConfig())
    first, second = measurement("x", 1), measurement("x", 2, finite=False)
    detect(first)
    state = detect.due(first)
    assert state is not None
    detect(second)
    assert detect.due(second) is None
    again = Detect(DetectConfig())
    (layer,) = again.unknown(first)
    assert layer == ("x", "w", "weight")
    again.take(again.recall(layer, lambda run, layer, role, whole=False: (state, [second])))
    assert list(again.unknown(first)) == []
    (ended,) = again(measurement("x", 3))
    assert (ended.rule, ended.state) == ("nonfinite", "resolved")
