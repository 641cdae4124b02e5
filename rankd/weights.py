"""A weight → its matrices → their readings: convolutions, stacks of experts, fused parts, LoRA pairs."""

from __future__ import annotations

import importlib.util
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch

from rankd.config import ConfigError
from rankd.engine import DEFAULT_TOLERANCE, Ask, WarmStarts, measure_matrices, measure_product
from rankd.metrics import EXTRA_METRICS, NEEDED_PACKAGES
from rankd.parts import NO_RULES, Split, SplitRules, one_matrix, part_name, split, summarise_stack
from rankd.parts.lora import lora_base
from rankd.plan import MeasureConfig
from rankd.records import Reading, Tier
from rankd.spectrum.noise import is_scaled

WORKING_COPIES = 3
"""A batch's memory, beside the matrices themselves, in copies of them: stacked, split in halves, squared."""

MAX_PRODUCT_WORK = 1 << 36
"""Multiplications for the product of a LoRA pair: seconds of one core, and 2 GB of copies. Enough for rank 1,024 where
rows and columns are 65,536 together; nothing else keeps a peer from factors of rank 100,000."""

MIN_WORK = 1024
"""Multiplications that an element of a factor counts for at least: thin ones take as long to fetch."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for all measurements. `metrics`: names of EXTRA_METRICS."""

    tolerance: float = DEFAULT_TOLERANCE
    reference: bool = False
    rules: SplitRules = NO_RULES
    metrics: tuple[str, ...] = ()


DEFAULT_SETTINGS = Settings()


def settings_of(config: MeasureConfig) -> Settings:
    """ConfigError for a rule that cannot be read, or a metric that there is not."""
    try:
        rules = SplitRules.parse(config.split)
    except ValueError as error:
        raise ConfigError(f"measure.{error}") from None
    if unknown := sorted(set(config.metrics) - set(EXTRA_METRICS)):
        raise ConfigError(f"measure.metrics={unknown[0]!r}: expected some of {', '.join(EXTRA_METRICS)}")
    for name in config.metrics:
        if (package := NEEDED_PACKAGES.get(name)) is not None and importlib.util.find_spec(package) is None:
            raise ConfigError(f"measure.metrics={name!r}: expected its package: pip install 'rankd[{package}]'")
    return Settings(config.tolerance, config.method == "svdvals", rules, tuple(config.metrics))


@dataclass(frozen=True, slots=True)
class Weight:
    """A tensor of two or more dimensions to measure, and in which tier. `partner`: the other factor, where this is the
    second of a LoRA pair."""

    run: str
    layer: str
    tensor: torch.Tensor = field(repr=False)
    wire_dtype: str
    source_dtype: str
    role: str = "weight"
    tier: Tier = "exact"
    partner: torch.Tensor | None = field(default=None, repr=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    def on(self, device: torch.device) -> Weight:
        other = None if self.partner is None else self.partner.to(device)
        return replace(self, tensor=self.tensor.to(device), partner=other)


@dataclass(frozen=True, slots=True)
class Part:
    """A reading of a part of a weight under the name `layer` that its row has; `shape` of the matrix, or stack."""

    layer: str
    shape: tuple[int, ...]
    reading: Reading


@dataclass(slots=True)
class _Open:
    """A weight on its way: its matrices' readings, by part."""

    weight: Weight
    split: Split
    readings: dict[str, list[Reading]] = field(default_factory=lambda: defaultdict(list))
    peaks: torch.Tensor | None = None
    """(rows,) or (count, rows): the rows' largest magnitudes, once a part has asked for them."""

    def row_peaks(self, index: int) -> torch.Tensor:
        """(rows,) of the whole, or of matrix `index` of a stack."""
        whole = self.split.whole
        if self.peaks is None:
            self.peaks = whole.view(self.weight.tensor).float().abs().amax(dim=-1)  # float8 has no kernel
        return self.peaks[index] if whole.is_stack else self.peaks


@dataclass(frozen=True, slots=True)
class _Matrix:
    """`index` in a stack, else 0."""

    item: _Open
    part: str
    index: int
    matrix: torch.Tensor


def measure_weights(
    weights: Sequence[Weight], settings: Settings, warm: WarmStarts, max_bytes: float = math.inf
) -> list[list[Part]]:
    """The parts of each weight, the whole last; all on one device. Matrices of one shape, tier and dtype are measured
    together, as many at once as have `max_bytes` with what it takes to work on them. Raises what measuring raises."""
    opened = [_open(weight, settings) for weight in weights]
    groups: dict[object, list[_Matrix]] = defaultdict(list)
    for item in opened:
        for found in _matrices(item):
            groups[tuple(found.matrix.shape), found.matrix.dtype, item.weight.tier].append(found)
    for group in groups.values():
        size = max(1, int(min(max_bytes / (WORKING_COPIES * max(1, group[0].matrix.numel()) * 4), len(group))))
        for start in range(0, len(group), size):
            batch = group[start : start + size]
            asks = [_ask(one, settings) for one in batch]
            readings = measure_matrices([one.matrix for one in batch], asks, warm)
            for one, reading in zip(batch, readings, strict=True):
                one.item.readings[one.part].append(reading)
    return [_close(item) for item in opened]


def split_of(layer: str, shape: tuple[int, ...], role: str, settings: Settings) -> Split:
    """The matrices of a weight. The user's rules are about weights: a gradient or an update is cut as names say, and a
    feature is one matrix, whatever it is called."""
    if role == "feature":
        return one_matrix(shape)
    return split(layer, shape, settings.rules if role == "weight" else NO_RULES)


def _open(weight: Weight, settings: Settings) -> _Open:
    return _Open(weight, split_of(weight.layer, weight.shape, weight.role, settings))


def _matrices(item: _Open) -> Iterator[_Matrix]:
    """Of each part, experts one after the other."""
    parts = item.split.parts if item.split.kind != "fused" else (*item.split.parts, item.split.whole)
    for part in parts:
        view = part.view(item.weight.tensor)
        for index, matrix in enumerate(view if part.is_stack else (view,)):
            yield _Matrix(item, part.name, index, matrix)


def _ask(one: _Matrix, settings: Settings) -> Ask:
    weight = one.item.weight
    shape = "x".join(map(str, weight.shape))
    key = "\0".join((weight.run, part_name(weight.layer, one.part), weight.role, shape, str(one.index)))
    dtypes = weight.wire_dtype, weight.source_dtype or weight.wire_dtype
    return Ask(weight.tier, key, *dtypes, settings.tolerance, settings.reference, settings.metrics, _row_peaks(one))


def _row_peaks(one: _Matrix) -> torch.Tensor | None:
    """Of the rows of the whole, whose scale a part that is cut by columns has too: a weak K beside a strong Q is
    rounded as coarsely as the Q."""
    rows, cols = one.item.split.whole.shape[-2:]
    cut_by_columns = one.matrix.shape[0] == rows and one.matrix.shape[1] < cols
    return one.item.row_peaks(one.index) if cut_by_columns and is_scaled(one.item.weight.wire_dtype) else None


def _close(item: _Open) -> list[Part]:
    """Readings of parts, that of a LoRA pair's product, and of the whole."""
    weight, plan = item.weight, item.split
    whole = _reading(item, plan.whole.name, plan.whole.is_stack)
    if plan.reason is not None:
        whole = _with(whole, split_reason=plan.reason)
    found = []
    if plan.kind == "fused":
        for part in plan.parts:
            reading = _with(_reading(item, part.name, part.is_stack), part_of=weight.layer)
            found.append(Part(part_name(weight.layer, part.name), part.shape, reading))
        whole = _with(whole, parts=[part.name for part in plan.parts])
    product = _product(weight)
    if isinstance(product, str):
        whole = _with(whole, lora_reason=product)
    elif product is not None:
        found.append(product)
    return [*found, Part(weight.layer, weight.shape, whole)]


def _reading(item: _Open, name: str, is_stack: bool) -> Reading:
    readings = item.readings[name]
    return summarise_stack(readings) if is_stack else readings[0]


def _product(weight: Weight) -> Part | str | None:
    """Of a LoRA pair, or why there is none."""
    other, factor = weight.partner, lora_base(weight.layer)
    if other is None or factor is None:
        return None
    layer, side = factor
    a, b = (weight.tensor, other) if side == "A" else (other, weight.tensor)
    a, b = a.flatten(1), b.flatten(1)
    (inner, cols), rows = a.shape, b.shape[0]
    if sum(side * inner * max(MIN_WORK, min(side, inner)) for side in (rows, cols)) > MAX_PRODUCT_WORK:
        return f"the product of {rows} × {inner} and {inner} × {cols} would take too long to measure"
    began = time.perf_counter()
    reading = measure_product(a, b)
    if not reading.finite:
        return "the product of two finite factors is beyond the range of float64"
    return Part(layer, (rows, cols), replace(reading, seconds=time.perf_counter() - began))


def _with(reading: Reading, **further: object) -> Reading:
    return replace(reading, further={**reading.further, **further})
