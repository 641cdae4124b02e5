"""What rounding on the wire does to readings, and batches of several matrices, as a GPU has them."""

import math

import numpy as np
import pytest
import torch
from rounded import CASTS, rounded
from spectra import composed, made

from rankd.engine import Ask, WarmStarts, measure_matrices, measure_product
from rankd.engine.tiers import NOISE_TOLERANCE, Batch, measure_estimates, measure_norms
from rankd.metrics import METRICS
from rankd.records import TIERS, Reading, Tier

SIZE = 384


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def rank_8(rows: int, cols: int) -> torch.Tensor:
    return 0.01 * normal(rows, 8) @ normal(8, cols, seed=1)


def outliers() -> torch.Tensor:
    weight = rank_8(SIZE, SIZE)
    weight[5] *= 100
    return weight


LOW_RANK = {
    "rank 8": rank_8(768, 768),
    "outlier row": outliers(),
    "outlier column": outliers().T.contiguous(),
    "zipf rows": rank_8(SIZE, SIZE) / torch.arange(1, SIZE + 1)[:, None],
    "rank 1": torch.outer(normal(SIZE), normal(SIZE, seed=1)),
    "constant": torch.full((SIZE, SIZE), 0.0173),
    "wide": rank_8(64, 3000),
    "tall": rank_8(3000, 64),
}


def read(weight: torch.Tensor, wire: str, source: str = "float32", tier: Tier = "exact") -> Reading:
    (reading,) = measure_matrices([weight], [Ask(tier, "k", wire, source)])
    return reading


def value(reading: Reading, name: str = "effective_rank") -> float:
    found = reading.metrics[name]
    assert found is not None
    return found


def assert_alike(reading: Reading, other: Reading, rel: float) -> None:
    for name, found in reading.metrics.items():
        expected = other.metrics[name]
        assert found == (None if expected is None else pytest.approx(expected, rel=rel)), name


@pytest.mark.parametrize("name", LOW_RANK)
def test_low_rank_is_seen_through_rounding(name: str) -> None:
    whole = read(LOW_RANK[name], "float32")
    true = value(whole)
    for dtype in CASTS:
        reading = read(rounded(LOW_RANK[name], dtype), dtype)
        raw, seen = reading.further["effective_rank_raw"], value(reading)
        assert raw >= seen * (1 - 1e-9)
        off = abs(seen / true - 1)
        assert off <= 0.1 or ("float8" in dtype and reading.further["inside_noise"]), (dtype, true, seen, raw)
        if abs(raw - seen) > 0.1 * raw:
            assert reading.further["inside_noise"] is True
            assert reading.bars["effective_rank"] == pytest.approx((seen, raw))
        for other in ("stable_rank", "effective_rank_energy", "participation_ratio"):
            assert value(reading, other) == pytest.approx(value(whole, other), rel=0.1)


def test_without_the_correction_it_would_not_be() -> None:
    raw = {dtype: read(rounded(LOW_RANK["rank 8"], dtype), dtype).further["effective_rank_raw"] for dtype in CASTS}
    assert raw["bfloat16"] > 8.9 and raw["int8"] > 12 and raw["float8_e4m3fn"] > 20 and raw["float8_e5m2"] > 40


def test_weights_that_are_bfloat16_already() -> None:
    """As bfloat16 their noise is their own, and is not taken away; kept as float32 they look like any others."""
    own = LOW_RANK["rank 8"].bfloat16()
    reading = read(own, "bfloat16", "bfloat16")
    assert reading.further["wire_noise_floor"] == 0 < reading.further["source_noise_floor"]
    assert value(reading) == pytest.approx(value(read(own.float(), "float32")), rel=1e-9)
    assert not reading.bars and "inside_noise" not in reading.further
    stored = read(own.float(), "bfloat16", "float32")
    assert stored.further["wire_noise_floor"] > 0 and value(stored) == pytest.approx(8, rel=0.1)
    assert stored.further["effective_rank_raw"] == pytest.approx(value(reading), rel=1e-9)
    as_half = read(own.half(), "float16", "bfloat16")
    assert value(as_half) == pytest.approx(value(reading), rel=0.1)


@pytest.mark.parametrize("kind", ["gaussian", "trained"])
def test_a_full_spectrum_is_left_as_it_is(kind: str) -> None:
    weight = 0.02 * normal(SIZE, SIZE)
    if kind == "trained":
        weight += 0.1 * rank_8(SIZE, SIZE)
    true = value(read(weight, "float32"))
    for dtype, tolerance in zip(CASTS, (1e-4, 1e-3, 5e-3, 0.02, 0.05), strict=True):
        reading = read(rounded(weight, dtype), dtype)
        assert value(reading) == pytest.approx(true, rel=tolerance), dtype
        assert reading.further["inside_noise"] is False


def test_what_is_all_noise_says_so() -> None:
    """Weights of a quarter of the smallest step: the raw value stands, since nothing better is known."""
    reading = read(normal(200, 200) * 2.0**-135, "bfloat16")
    assert reading.further["inside_noise"] is True
    assert value(reading) == reading.further["effective_rank_raw"] > 100


def test_the_floor_is_in_the_weights_unit() -> None:
    weight = 0.02 * normal(200, 200)
    plain = read(weight, "bfloat16").further
    error = float(torch.linalg.matrix_norm(rounded(weight, "bfloat16") - weight, 2))
    assert plain["wire_noise_floor"] == pytest.approx(error, rel=0.5)
    for scale in (1e-25, 1e25):
        for tier in TIERS:
            scaled = read(weight * scale, "bfloat16", tier=tier).further
            assert scaled["wire_noise_floor"] == pytest.approx(scale * plain["wire_noise_floor"], rel=1e-3)


def test_a_correction_reaches_all_that_depends_on_it() -> None:
    reading = read(rounded(LOW_RANK["rank 8"], "int8"), "int8")
    ratio = value(reading, "effective_rank_ratio") / reading.further["effective_rank_ratio_raw"]
    assert ratio == pytest.approx(value(reading) / reading.further["effective_rank_raw"])
    for name in ("effective_rank", "effective_rank_ratio", "nuclear_norm"):
        low, high = reading.bars[name]
        assert low <= value(reading, name) <= high < math.inf


def test_the_bar_of_an_estimate_reaches_down_to_what_rounding_may_have_added() -> None:
    """Of few large singular values above many small ones, whose estimate is sharper than what bfloat16 adds to it."""
    found = []
    for seed in range(4):
        values = torch.where(torch.arange(SIZE) < 10, 1.0, 0.01).double()
        weight = composed(values, SIZE, SIZE, torch.Generator().manual_seed(seed)).float()
        wire, own = (
            read(rounded(weight, "bfloat16"), "bfloat16", dtype, "estimate") for dtype in ("float32", "bfloat16")
        )
        assert wire.tier == own.tier == "estimate" and wire.metrics == own.metrics
        true = read(weight, "float32")
        for name in ("effective_rank", "nuclear_norm", "effective_rank_ratio"):
            (low, high), (own_low, own_high) = wire.bars[name], own.bars[name]
            assert low <= value(true, name) <= high == own_high
            assert 0 < 1 - low / own_low <= NOISE_TOLERANCE
            found.append(own_low <= value(true, name))
    assert not all(found), "without, the truth would be below some"


def batch_of(matrices: torch.Tensor) -> Batch:
    count = len(matrices)
    return Batch(matrices, np.ones(count), [Ask("estimate", f"layer {place}") for place in range(count)])


def test_batches_give_each_matrix_its_own_reading() -> None:
    matrices = torch.stack([made("spiked", 150, 200, seed) for seed in range(3)]).float()
    for measure, rel in ((measure_norms, 1e-5), (measure_estimates, 1e-4)):
        together = list(measure(batch_of(matrices), WarmStarts()))
        for place in range(3):
            whole = batch_of(matrices)
            one = Batch(matrices[place : place + 1], np.ones(1), whole.asks[place : place + 1])
            (alone,) = measure(one, WarmStarts())
            found = together[place]
            assert alone is not None and found is not None
            assert_alike(alone, found, rel)
            assert alone.method == found.method and set(alone.bars) == set(found.bars)


def test_scales_and_dtypes_of_a_batch_are_each_ones_own() -> None:
    matrices = torch.stack([normal(150, 200)] * 3)
    scales = np.array([1.0, 2.0**100, 2.0**-100])
    dtypes = (("bfloat16", "float32"), ("int8", "float32"), ("bfloat16", "bfloat16"))
    asks = [Ask("norms", "k", wire, source) for wire, source in dtypes]
    readings = list(measure_norms(Batch(matrices, scales, asks), WarmStarts()))
    for scale, ask, reading in zip(scales, asks, readings, strict=True):
        alone = read(normal(150, 200), ask.wire_dtype, ask.source_dtype, "norms")
        assert value(reading, "frobenius_norm") == pytest.approx(value(alone, "frobenius_norm") * scale, rel=1e-5)
        assert value(reading, "stable_rank") == pytest.approx(value(alone, "stable_rank"), rel=1e-4)
        for name in ("wire_noise_floor", "source_noise_floor"):
            assert reading.further[name] == pytest.approx(alone.further[name] * scale, rel=1e-5)


def test_a_product_is_measured_without_forming_it() -> None:
    a, b = normal(4, 90), normal(70, 4, seed=1)
    reading = measure_product(a, b)
    (expected,) = measure_matrices([b.double() @ a.double()], [Ask(reference=True)])
    assert_alike(reading, expected, 1e-9)
    assert list(reading.metrics) == list(METRICS) and reading.method == "lora_qr+gram_eigvalsh_float64"
    assert reading.further["wire_noise_floor"] is None
    nothing = measure_product(a, torch.zeros(70, 4))
    assert nothing.zero and set(nothing.metrics.values()) == {0.0}
