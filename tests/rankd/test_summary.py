import numpy as np
import numpy.typing as npt
import pytest

from rankd.records import Spectrum
from rankd.summary import MAX_DECADES, NUM_BINS, NUM_TOP, read_summary, summarise, summarise_curve


def spectrum(values: list[float], scale: float = 1.0) -> Spectrum:
    return Spectrum(len(values), len(values), np.array(values), scale, "gram_eigvalsh_float64")


def test_the_largest_values_and_every_value_in_a_bin() -> None:
    values = np.logspace(2, -3, 500)
    summary = read_summary(summarise(spectrum(values.tolist(), scale=2.0)))
    assert summary.top == pytest.approx(2 * values[:NUM_TOP], rel=1e-6)
    assert sum(summary.counts) == 500 and len(summary.counts) == NUM_BINS
    assert (summary.low, summary.high) == pytest.approx((np.log10(2e-3), np.log10(200)), rel=1e-6)
    assert max(summary.counts) - min(summary.counts) <= 1  # equal in the logarithm


def test_it_is_small() -> None:
    assert len(summarise(spectrum(np.linspace(1, 0, 10_000).tolist()))) == 10 + 4 * (NUM_TOP + NUM_BINS)


def test_zeros_count_in_the_lowest_bin() -> None:
    summary = read_summary(summarise(spectrum([1.0, 0.5, 0.0, 0.0])))
    assert summary.counts[0] == 2 and sum(summary.counts) == 4
    assert summary.low == pytest.approx(-MAX_DECADES)


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_scales_at_the_ends_of_float32(scale: float) -> None:
    summary = read_summary(summarise(spectrum([3.0, 3.0, 3.0], scale)))
    assert summary.top == pytest.approx((3 * scale,) * 3, rel=1e-6) and sum(summary.counts) == 3


@pytest.mark.parametrize(
    "nothing", [spectrum([]), spectrum([0.0, 0.0], 0.0), Spectrum(2, 2, np.array([]), float("nan"), "")]
)
def test_nothing_to_look_at(nothing: Spectrum) -> None:
    assert summarise(nothing) == b""


def curve(values: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """What an estimate knows of `values`: how many are above each level, smoothed; and the levels' logarithms."""
    log_x = np.linspace(-36, 36, 97)
    return np.array([np.sum(values**2 / (values**2 + x)) for x in np.exp(log_x)]), log_x / 2


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
def test_the_same_of_an_estimate(scale: float) -> None:
    values = np.logspace(0, -2, 400)
    above, log_values = curve(values)
    summary = read_summary(summarise_curve(values[0], above, log_values, 400, scale))
    assert summary.top == pytest.approx((scale * values[0],), rel=1e-6), "no more is known than the largest"
    assert summary.high == pytest.approx(np.log10(scale), abs=1e-5)
    assert sum(summary.counts) == 400 and min(summary.counts) >= 0
    # Smoothed over a factor of e, and less than that much lower than the lowest; below which a fiftieth is counted.
    assert -2.6 < summary.low - np.log10(scale) < -1.9
    edges = np.linspace(summary.low, summary.high, NUM_BINS + 1) - np.log10(scale)
    below = np.interp([-1.5, -1.0, -0.5], edges, np.cumsum([0, *summary.counts]))
    assert below == pytest.approx([100, 200, 300], abs=25)


def test_an_estimate_of_low_rank_has_the_rest_in_the_lowest_bin() -> None:
    values = np.concatenate([np.linspace(2, 1, 8), np.zeros(192)])
    above, log_values = curve(values)
    summary = read_summary(summarise_curve(2.0, above, log_values, 200, 1.0))
    assert summary.counts[0] == pytest.approx(192, abs=4) and sum(summary.counts) == 200
    assert summarise_curve(0.0, above, log_values, 200, 1.0) == b""


@pytest.mark.parametrize("packed", [b"", b"abc", summarise(spectrum([1.0, 0.5]))[:-1], b"\xff" * 40])
def test_other_bytes_are_refused(packed: bytes) -> None:
    with pytest.raises(ValueError, match="a summary of"):
        read_summary(packed)
