"""The in-process API, as docs promise it."""

import math

import pytest
import torch

import rankd
from rankd import RankHealthMonitor, compute_effective_rank, compute_stable_rank


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = torch.nn.Linear(6, 6)
        self.conv = torch.nn.Conv2d(2, 5, 3)
        self.lm_head = torch.nn.Linear(6, 6)


def test_stable_rank() -> None:
    assert compute_stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(1.5)
    assert compute_stable_rank(torch.zeros(3, 4)) == 12.0
    assert compute_stable_rank(torch.zeros(0, 4)) == 0.0
    assert compute_stable_rank(torch.ones(7)) == 7.0
    assert compute_stable_rank(torch.tensor(3.0)) == 1.0
    weight = torch.randn(5, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert compute_stable_rank(weight) == compute_stable_rank(weight.reshape(5, -1)) <= 5
    assert math.isnan(compute_stable_rank(torch.tensor([[1.0, math.nan]])))
    assert compute_stable_rank(torch.eye(4, dtype=torch.bfloat16) * 1e-30) == pytest.approx(4.0)


def test_effective_rank() -> None:
    assert compute_effective_rank(torch.eye(5)) == pytest.approx(5.0)
    assert compute_effective_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0]))) == pytest.approx(2**1.5)
    assert compute_effective_rank(torch.zeros(3, 4)) == 1.0
    assert compute_effective_rank(torch.ones(7)) == 1.0
    assert compute_effective_rank(torch.eye(4) * 1e-11) == 1.0
    assert compute_effective_rank(torch.eye(4) * 1e-11, eps=1e-12) == pytest.approx(4.0)
    assert math.isnan(compute_effective_rank(torch.tensor([[math.inf, 1.0]])))


def test_layer_ranks_compute_each_layers_spectrum_once(monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = torch.linalg.eigvalsh, []

    def counting(matrix: torch.Tensor) -> torch.Tensor:
        calls.append(tuple(matrix.shape))
        return real(matrix)

    monkeypatch.setattr(torch.linalg, "eigvalsh", counting)
    model = Model()
    ranks = RankHealthMonitor().compute_layer_ranks(model)
    assert list(ranks) == ["body.weight", "conv.weight", "lm_head.weight"]
    assert calls == [(6, 6), (5, 5), (6, 6)], "of the Gram matrix of the short side"
    monkeypatch.undo()
    for name, values in ranks.items():
        weight = model.get_parameter(name)
        assert values["stable_rank"] == compute_stable_rank(weight)
        assert values["effective_rank"] == compute_effective_rank(weight)
        assert values["spectral_norm"] == pytest.approx(torch.linalg.matrix_norm(weight.detach().flatten(1), 2).item())


def test_layer_ranks_of_zero_and_non_finite_layers() -> None:
    model = Model()
    with torch.no_grad():
        model.body.weight.zero_()
        model.lm_head.weight[0, 0] = math.nan
    ranks = RankHealthMonitor().compute_layer_ranks(model)
    assert ranks["body.weight"] == {"stable_rank": 36.0, "effective_rank": 1.0, "spectral_norm": 0.0}
    assert all(math.isnan(value) for value in ranks["lm_head.weight"].values())


def test_warnings_name_the_layer_after_the_warm_up() -> None:
    monitor = RankHealthMonitor(log_interval=3, warn_threshold=0.3)
    healthy = {"h.0": {"stable_rank": 10.0}, "h.1": {"stable_rank": 10.0}}
    fallen = {"h.0": {"stable_rank": 10.0}, "h.1": {"stable_rank": 1.0}}
    assert [monitor.check_warnings(healthy) for _ in range(3)] == [[]] * 3
    answers = [monitor.check_warnings(fallen) for _ in range(4)]
    # The EMA after k falls is 1 + 9 · 0.9^k: below 7 from k = 4 on.
    assert answers[:3] == [[], [], []]
    (warning,) = answers[3]
    assert warning.startswith("WARN h.1: stable rank EMA 6.905 is 31.0 % below its baseline 10")


def test_critical_layers_have_the_multiplied_threshold() -> None:
    monitor = RankHealthMonitor(warn_threshold=0.3)
    assert monitor.get_threshold_for_layer("lm_head.weight") == pytest.approx(0.15)
    assert monitor.get_threshold_for_layer("h.0.c_proj.weight") == pytest.approx(0.15)
    assert monitor.get_threshold_for_layer("h.0.attn.weight") == 0.3
    own = RankHealthMonitor(warn_threshold=0.4, critical_layers=["attn"], critical_threshold_multiplier=0.25)
    assert own.get_threshold_for_layer("h.0.attn.weight") == pytest.approx(0.1)
    assert own.get_threshold_for_layer("lm_head.weight") == 0.4
    assert RankHealthMonitor(critical_layers=[]).get_threshold_for_layer("lm_head.weight") == 0.3


def test_a_non_finite_layer_neither_warns_nor_spoils_what_follows() -> None:
    monitor = RankHealthMonitor(log_interval=2)
    for value in (10.0, math.nan, 10.0, math.nan):
        assert monitor.check_warnings({"h": {"stable_rank": value}}) == []
    assert monitor.detectors["h"].ema == 10.0


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"log_interval": 0}, "log_interval is 0; expected"),
        ({"warn_threshold": -0.1}, "warn_threshold is -0.1; expected"),
        ({"warn_threshold": math.nan}, "warn_threshold is nan; expected"),
        ({"critical_threshold_multiplier": -1.0}, "critical_threshold_multiplier is -1.0; expected"),
        ({"critical_layers": "lm_head"}, "critical_layers is the text 'lm_head'; expected"),
    ],
)
def test_wrong_arguments_are_named(arguments: dict[str, object], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        rankd.RankHealthMonitor(**arguments)  # type: ignore[arg-type]
