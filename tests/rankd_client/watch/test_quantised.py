"""Quantised weights: what they say they are, and their values."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from rankd_client.watch import Selection, Watched, watch

WEIGHT = torch.randn(64, 256, generator=torch.Generator().manual_seed(3))


def only(model: Any, **selection: Any) -> Watched:
    watched, skipped = watch(model, Selection(**selection))
    assert skipped == {}
    return watched[0]


def off(item: Watched) -> float:
    """By how much the values are off, relative."""
    return float((item.values().float() - WEIGHT).norm() / WEIGHT.norm())


class Kept(torch.Tensor):
    """A tensor as torchao's and Transformer Engine's are: its dtype and shape are those of the values, which it has in
    `qdata`."""

    qdata: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, qdata: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype) -> Any:
        made = torch.Tensor._make_wrapper_subclass(cls, qdata.shape, dtype=dtype, device=qdata.device)  # type: ignore[attr-defined]
        made.qdata, made.scale = qdata, scale
        return made

    def dequantize(self) -> torch.Tensor:
        return (self.qdata.float() * self.scale).to(self.dtype)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return cls(args[0].qdata, args[0].scale, args[0].dtype)
        raise NotImplementedError(f"{func}")


class Float8Tensor(Kept):
    _fp8_dtype = "DType.kFloat8E4M3"


class Silent(Kept):
    """In a format that nobody told us of, without a way to its values."""

    __module__ = "torchao.new"
    dequantize = torch.Tensor.dequantize  # type: ignore[assignment]


def kept(kind: type[Kept], dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    scale = WEIGHT.abs().amax(1, keepdim=True) / 127
    model = nn.Linear(256, 64, bias=False)
    model.weight = nn.Parameter(kind((WEIGHT / scale).round().to(torch.int8), scale, dtype), requires_grad=False)
    return model


@pytest.mark.parametrize(
    ("kind", "source"), [(Kept, "int8"), (Float8Tensor, "float8_e4m3fn")], ids=lambda value: str(value)
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_any_tensor_that_can_be_dequantised_is_watched(kind: type[Kept], source: str, dtype: torch.dtype) -> None:
    item = only(kept(kind, dtype))
    assert (item.name, item.shape, item.source_dtype, item.dtype) == ("weight", (64, 256), source, "bfloat16")
    assert item.decoded_bytes == 64 * 256 * dtype.itemsize and item.num_bytes == 64 * 256 * 2
    assert type(item.values()) is torch.Tensor and off(item) < 0.01


def test_one_that_cannot_has_a_readable_reason() -> None:
    assert watch(kept(Silent), Selection()) == ([], {"weight": "Silent has no dequantize()"})


def test_decoding_takes_no_more_than_may_be_taken() -> None:
    item = only(kept(Kept), max_decoded_bytes=64 * 256 * 2)
    assert item.decoded_bytes == 64 * 256 * 2
    _, skipped = watch(kept(Kept), Selection(max_decoded_bytes=64 * 256 * 2 - 1))
    assert skipped == {"weight": "int8 takes 32768 bytes decoded, more than max_push_bytes"}


def test_torchs_own_quantised_tensors() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao is on its way out, and says so
        tensor = torch.quantize_per_tensor(WEIGHT, 0.05, 0, torch.qint8)
    item = only({"w": tensor})
    assert (item.source_dtype, item.shape) == ("qint8", (64, 256)) and off(item) < 0.05


class Packed(nn.Module):
    """As torch.ao.nn.quantized.Linear: no parameters, and something that only its kernel reads."""

    def __init__(self) -> None:
        super().__init__()
        self._packed_params = object()


def test_a_model_of_packed_modules_says_why_nothing_is_watched() -> None:
    assert watch(nn.Sequential(Packed(), nn.ReLU()), Selection()) == ([], {"0": "packed by torch.ao.quantization"})


def test_no_package_is_imported_for_it() -> None:
    watch(kept(Kept), Selection())
    code = (
        "import sys, torch; from rankd_client.watch import Selection, watch;"
        "watch(torch.nn.Linear(4, 4), Selection());"
        "print([name for name in ('torchao', 'bitsandbytes', 'transformer_engine') if name in sys.modules])"
    )
    import subprocess

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "[]\n"


def quietly(load: Callable[[], Any]) -> Any:
    """What these packages have to say as they load is not about us."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load()


TORCHAO = {
    "Int8WeightOnlyConfig": ("int8", 0.01),
    "Float8WeightOnlyConfig": ("float8_e4m3fn", 0.05),
    "Int8DynamicActivationInt8WeightConfig": ("int8", 0.01),
}


@pytest.mark.parametrize(("config", "source", "error"), [(key, *value) for key, value in TORCHAO.items()], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_torchao(config: str, source: str, error: float, dtype: torch.dtype) -> None:
    quantization = quietly(lambda: pytest.importorskip("torchao.quantization"))
    model = nn.Sequential(nn.Linear(256, 64, bias=False, dtype=dtype))
    with torch.no_grad():
        model[0].weight.copy_(WEIGHT)
    quietly(lambda: quantization.quantize_(model, getattr(quantization, config)()))
    item = only(model)
    assert (item.name, item.shape, item.source_dtype) == ("0.weight", (64, 256), source)
    assert off(item) < error


def test_torchao_of_few_bits() -> None:
    quantization = quietly(lambda: pytest.importorskip("torchao.quantization"))
    model = nn.Sequential(nn.Linear(256, 64, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(WEIGHT)
    config = quantization.IntxWeightOnlyConfig(weight_dtype=torch.int4)
    quietly(lambda: quantization.quantize_(model, config))
    item = only(model)
    assert item.source_dtype == "int4" and off(item) < 0.2
    four_bits = quantization.NF4Tensor.from_tensor(WEIGHT, 64, 256)
    item = only({"w": nn.Parameter(four_bits, requires_grad=False)})
    assert (item.source_dtype, item.shape) == ("nf4", (64, 256)) and off(item) < 0.2


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_bitsandbytes_in_four_bits(kind: str) -> None:
    bitsandbytes = quietly(lambda: pytest.importorskip("bitsandbytes"))
    linear = bitsandbytes.nn.Linear4bit(256, 64, bias=False, quant_type=kind)
    linear.load_state_dict({"weight": WEIGHT})
    assert only(nn.Sequential(linear)).source_dtype == "float32"  # as yet
    item = only(nn.Sequential(quietly(lambda: linear.to("cpu"))))
    assert (item.source_dtype, item.shape) == (kind, (64, 256)) and off(item) < 0.2


def test_bitsandbytes_in_eight_bits_before_and_after_a_pass() -> None:
    bitsandbytes = quietly(lambda: pytest.importorskip("bitsandbytes"))
    linear = bitsandbytes.nn.Linear8bitLt(256, 64, bias=False, has_fp16_weights=False)
    linear.load_state_dict({"weight": WEIGHT})
    model = nn.Sequential(quietly(lambda: linear.to("cpu")))
    for _ in range(2):
        item = only(model)
        assert (item.source_dtype, item.shape) == ("int8", (64, 256)) and off(item) < 0.01
        quietly(lambda: model(torch.randn(2, 256)))
    reason = "int8 without its scales, which the module has: push the module"
    assert watch(dict(model.named_parameters()), Selection()) == ([], {"0.weight": reason})
