"""Checkpoints on disk → their weight matrices, one at a time. Nothing in a file is ever executed."""

from __future__ import annotations

import math
import os
import time
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankd.executors import MeasureError
from rankd.executors.solver import Solver
from rankd.parts.lora import lora_base
from rankd.plan import AskedTier, Costs, Size, tier_by_cost
from rankd.records import Measurement, Tier
from rankd.weights import DEFAULT_SETTINGS, Settings, Weight, split_of
from rankd_client.naming import clashes, clean_names

SAFETENSORS_SUFFIXES = (".safetensors",)
TORCH_SUFFIXES = (".pt", ".pth", ".bin", ".ckpt")
MODEL_KEYS = ("model_state_dict", "state_dict", "model_state", "model", "module", "net", "network", "params", "weights")
"""Where trainers keep the model beside their optimizer; the first of these that holds a mapping is taken."""
MAX_NESTING = 32
FLOAT_DTYPES = (
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
)


class CheckpointError(ValueError):
    """A file that cannot be read as a checkpoint; the message names it and what was expected."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """In place of a tensor that is no weight matrix."""

    reason: str


def load_tensors(path: str | Path) -> Iterator[tuple[str, torch.Tensor | Skipped]]:
    """Every tensor of a .safetensors or .pt/.pth/.bin/.ckpt file with its cleaned name, in the order of the file: those
    of two or more dimensions and a floating dtype, and the others as `Skipped`.

    Of a file that holds more than a model, the model's state dict is taken (see MODEL_KEYS); without one, all tensors
    but those below top-level keys with "optim" or "sched" in their name. Raises CheckpointError for a file that is
    missing, damaged, of another kind, or a pickle that wants to run code.
    """
    path = Path(path)
    if path.suffix not in SAFETENSORS_SUFFIXES + TORCH_SUFFIXES:
        expected = ", ".join(SAFETENSORS_SUFFIXES + TORCH_SUFFIXES)
        raise CheckpointError(f"{path}: suffix is {path.suffix!r}; expected one of {expected}")
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a checkpoint")
    read = _read_safetensors if path.suffix in SAFETENSORS_SUFFIXES else _read_torch
    seen: dict[tuple[int, torch.Size, tuple[int, ...]], str] = {}
    for name, tensor in read(path):
        if isinstance(tensor, Skipped):
            yield name, tensor
            continue
        reason = _reason_to_skip(tensor)
        if reason is None and path.suffix in TORCH_SUFFIXES:
            first = seen.setdefault((tensor.data_ptr(), tensor.shape, tensor.stride()), name)
            reason = None if first == name or tensor.numel() == 0 else f"the same tensor as {first}"
        yield name, tensor if reason is None else Skipped(reason)


def analyze_file(
    path: str | Path,
    on_skip: Callable[[str, str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
    tier: AskedTier = "exact",
    settings: Settings = DEFAULT_SETTINGS,
    device: torch.device | str = "cpu",
) -> Iterator[Measurement]:
    """Measurements of every weight matrix of a checkpoint: `run` is the file's name and `step` None. A weight of
    several parts gives one for each, then that of the whole; the product of a LoRA pair comes with its second factor.

    On a CPU several weights are measured at once, a thread of one intra-op thread each; rows come in the file's order.
    What `device` has no memory for is measured on the CPU. `on_skip` is called with the name of each tensor left out
    and the reason. Raises CheckpointError.
    """
    run, factors, left_out = Path(path).name, dict[str, torch.Tensor](), on_skip or (lambda name, reason: None)
    solver = Solver(torch.device(device), lambda fault, text: None, settings)

    def measure(weight: Weight) -> list[Measurement]:
        start = clock()
        parts = solver.measure(weight)
        dtypes = {"source_dtype": weight.source_dtype, "wire_dtype": weight.wire_dtype}
        return [
            Measurement.of(part.reading, run, part.layer, None, part.shape, **dtypes, measure_seconds=clock() - start)
            for part in parts
        ]

    def weights() -> Iterator[tuple[str, Weight | Skipped]]:
        for name, tensor in load_tensors(path):
            if isinstance(tensor, Skipped):
                yield name, tensor
                continue
            dtype = str(tensor.dtype).removeprefix("torch.")
            chosen = _auto_tier(name, tensor, settings, solver.device) if tier == "auto" else tier
            partner = _partner(name, tensor, factors)
            yield name, Weight(run, name, tensor, dtype, dtype, tier=chosen, partner=partner)

    num_workers = len(os.sched_getaffinity(0)) if solver.device.type == "cpu" else 1
    for name, outcome in _in_order(weights(), measure, num_workers):
        if isinstance(outcome, Skipped):
            left_out(name, outcome.reason)
        else:
            yield from outcome


def _in_order(
    weights: Iterator[tuple[str, Weight | Skipped]], measure: Callable[[Weight], list[Measurement]], num_workers: int
) -> Iterator[tuple[str, list[Measurement] | Skipped]]:
    """What becomes of each, in their order, of which a few more than are being measured are read ahead."""
    with ThreadPoolExecutor(num_workers, "analyze", initializer=torch.set_num_threads, initargs=(1,)) as pool:
        begun: deque[tuple[str, Future[list[Measurement]] | Skipped]] = deque()
        failed: list[CheckpointError] = []
        try:
            for name, weight in _until_it_fails(weights, failed):
                begun.append((name, weight if isinstance(weight, Skipped) else pool.submit(measure, weight)))
                while len(begun) > num_workers + 1:
                    yield _finish(*begun.popleft())
            while begun:
                yield _finish(*begun.popleft())
            if failed:
                raise failed[0]
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _until_it_fails(
    weights: Iterator[tuple[str, Weight | Skipped]], failed: list[CheckpointError]
) -> Iterator[tuple[str, Weight | Skipped]]:
    """What comes before a fault in the file, which is put into `failed`: it is measured, and told, first."""
    try:
        yield from weights
    except CheckpointError as error:
        failed.append(error)


def _finish(name: str, begun: Future[list[Measurement]] | Skipped) -> tuple[str, list[Measurement] | Skipped]:
    try:
        return name, begun if isinstance(begun, Skipped) else begun.result()
    except MeasureError as error:
        return name, Skipped(str(error))


def _auto_tier(name: str, tensor: torch.Tensor, settings: Settings, device: torch.device) -> Tier:
    *experts, rows, cols = split_of(name, tuple(tensor.shape), "weight", settings).whole.shape
    return tier_by_cost(Costs(), device.type, Size(rows, cols, math.prod(experts)))


def _partner(name: str, tensor: torch.Tensor, factors: dict[str, torch.Tensor]) -> torch.Tensor | None:
    """The other factor of a product, if it came before and fits; else this one waits for it in `factors`."""
    factor = lora_base(name)
    if factor is None:
        return None
    product, side = factor
    other = factors.pop(product, None)
    if other is None:
        factors[product] = tensor
        return None
    a, b = (tensor, other) if side == "A" else (other, tensor)
    fits = b.numel() > 0 and b[0].numel() == a.shape[0]
    return other if fits and all(_has_something(factor) for factor in (a, b)) else None


def _has_something(factor: torch.Tensor) -> bool:
    """Whether it is finite and not all zero."""
    wide = factor.float() if factor.itemsize == 1 else factor
    return bool(wide.isfinite().all()) and bool(wide.any())


def _reason_to_skip(tensor: torch.Tensor) -> str | None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        return f"layout {tensor.layout}, quantized {tensor.is_quantized}; only plain dense tensors are measured"
    if tensor.ndim < 2:
        return f"{tensor.ndim} dimensions; a matrix has two or more"
    if tensor.dtype not in FLOAT_DTYPES:
        return f"dtype {tensor.dtype} is no floating dtype that can be measured"
    # A few stored bytes may claim to be any size by strides of 0: measuring such a view would allocate all of it.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return "a view whose elements overlap in memory"
    return None


def _read_safetensors(path: Path) -> Iterator[tuple[str, torch.Tensor | Skipped]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            yield from _renamed(file.keys(), file.get_tensor)
    except (SafetensorError, OSError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path}: {error}; expected a whole .safetensors file") from error


def _read_torch(path: Path) -> Iterator[tuple[str, torch.Tensor | Skipped]]:
    try:
        # Only the zip format can be mapped; mapped, tensors are read from disk as they are measured.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a damaged pickle raises anything at all
        # torch's own words are left out: they suggest to load the file with weights_only off.
        raise CheckpointError(
            f"{path}: {type(error).__name__}; expected a whole PyTorch checkpoint that holds tensors and no code"
        ) from error
    tensors = dict(_flatten(_model_part(content), "", set()))
    if not tensors:
        raise CheckpointError(f"{path}: holds a {type(content).__name__} without tensors; expected a state dict")
    yield from _renamed(tensors, tensors.__getitem__)


def _renamed(names: Iterable[str], get: Callable[[str], torch.Tensor]) -> Iterator[tuple[str, torch.Tensor | Skipped]]:
    clean = clean_names(names)
    clashing = clashes(clean)
    for name in clean:
        yield (name, Skipped(clashing[name])) if name in clashing else (clean[name], get(name))


def _model_part(content: Any) -> Any:
    for _ in range(MAX_NESTING):
        if not isinstance(content, Mapping):
            break
        mappings = (content.get(key) for key in MODEL_KEYS)
        inner = next((value for value in mappings if isinstance(value, Mapping) and value), None)
        if inner is None:
            break
        content = inner
    return content


def _flatten(content: Any, prefix: str, seen: set[int], depth: int = 0) -> Iterator[tuple[str, torch.Tensor]]:
    """Tensors under dotted names. A container that holds itself is entered once."""
    if isinstance(content, torch.Tensor):
        yield prefix or "tensor", content
        return
    if not isinstance(content, Mapping | list | tuple) or id(content) in seen or depth > MAX_NESTING:
        return
    seen.add(id(content))
    for key, value in content.items() if isinstance(content, Mapping) else enumerate(content):
        beside_model = depth == 0 and any(part in str(key) for part in ("optim", "sched"))
        if not beside_model or isinstance(value, torch.Tensor):
            yield from _flatten(value, f"{prefix}.{key}" if prefix else str(key), seen, depth + 1)
