"""Checkpoints: what is read of them, and what is refused."""

import pickle
import threading
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rankd.checkpoint import CheckpointError, Skipped, analyze_file, load_tensors

EYE = torch.eye(3)
ONES = torch.ones(2, 4)


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def layers(path: Path) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in load_tensors(path) if isinstance(tensor, torch.Tensor)}


def skipped(path: Path) -> dict[str, str]:
    return {name: tensor.reason for name, tensor in load_tensors(path) if isinstance(tensor, Skipped)}


def test_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    ids = torch.ones(2, 2, dtype=torch.int64)
    save_file({"module.h.weight": EYE, "module.h.bias": torch.ones(3), "module.ids": ids}, path)
    assert layers(path) == {"h.weight": (3, 3)}
    assert set(skipped(path)) == {"h.bias", "ids"}
    assert skipped(path)["h.bias"] == "1 dimensions; a matrix has two or more"
    assert "int64" in skipped(path)["ids"]


def test_two_tensors_of_one_name_are_both_left_out_and_both_named(tmp_path: Path) -> None:
    path = saved(tmp_path / "model.pt", {"_orig_mod.a": EYE, "a": ONES, "b": EYE})
    assert layers(path) == {"b": (3, 3)}
    assert skipped(path) == dict.fromkeys(["_orig_mod.a", "a"], "'_orig_mod.a' and 'a' are both called 'a'")


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_torch_files_of_both_formats(tmp_path: Path, options: dict[str, bool]) -> None:
    path = saved(tmp_path / "model.pt", {"_orig_mod.a": EYE, "b": ONES.bfloat16()}, **options)
    assert layers(path) == {"a": (3, 3), "b": (2, 4)}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"model": {"a": EYE}, "optimizer": {"state": {0: {"exp_avg": ONES}}}, "rng_state": ONES}, {"a"}),
        ({"epoch": 3, "state_dict": OrderedDict(a=EYE)}, {"a"}),
        ({"state": {"model_state_dict": {"a": EYE}}, "optim_state": {"m": ONES}}, {"state.model_state_dict.a"}),
        ({"model": {"module": {"a": EYE}}}, {"a"}),
        ({"model": {}, "other": {"a": EYE}}, {"other.a"}),
        ({"optim_head.weight": EYE}, {"optim_head.weight"}),
        ([EYE, {"a": ONES}], {"0", "1.a"}),
        (EYE, {"tensor"}),
    ],
)
def test_the_model_is_found_beside_other_things(tmp_path: Path, content: Any, expected: set[str]) -> None:
    assert set(layers(saved(tmp_path / "c.pth", content))) == expected


def test_tied_weights_are_measured_once(tmp_path: Path) -> None:
    path = saved(
        tmp_path / "model.bin", {"embedding": EYE, "head": EYE, "none": torch.empty(0, 3), "n": torch.empty(0, 3)}
    )
    assert set(layers(path)) == {"embedding", "none", "n"}
    assert skipped(path) == {"head": "the same tensor as embedding"}


def test_a_view_that_claims_more_than_is_stored_is_skipped(tmp_path: Path) -> None:
    path = saved(tmp_path / "bomb.pt", {"w": torch.zeros(1).expand(10**6, 10**6)})
    assert path.stat().st_size < 10_000
    assert skipped(path) == {"w": "a view whose elements overlap in memory"}


def test_a_container_that_holds_itself(tmp_path: Path) -> None:
    content: dict[str, Any] = {"a": EYE}
    content["self"] = content
    assert set(layers(saved(tmp_path / "c.pt", content))) == {"a"}


class Code:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    target = tmp_path / "ran"
    saved(tmp_path / "zip.pt", {"a": EYE, "code": Code(target)})
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Code(target)))
    for name in ("zip.pt", "plain.pt"):
        with pytest.raises(
            CheckpointError, match=rf"{name}.*expected a whole PyTorch checkpoint that holds tensors and no code"
        ):
            list(load_tensors(tmp_path / name))
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("kept", [0, 1, 7, 60, -30])
def test_truncated_files_are_refused_by_name(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"whole{suffix}"
    if suffix == ".pt":
        saved(path, {"a": torch.zeros(50, 50)})
    else:
        save_file({"a": torch.zeros(50, 50)}, path)
    damaged = tmp_path / f"damaged{suffix}"
    damaged.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(CheckpointError, match=rf"damaged{suffix}.*expected"):
        list(load_tensors(damaged))


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("notes.txt", b"hello", "suffix is '.txt'; expected one of .safetensors, .pt"),
        ("missing.pt", None, "no such file; expected a checkpoint"),
        ("text.pt", b"just some text\n", "expected a whole PyTorch checkpoint"),
        ("text.safetensors", b"just some text, long enough for a header", "expected a whole .safetensors file"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, name: str, content: bytes | None, expected: str) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError) as caught:
        list(load_tensors(tmp_path / name))
    assert name in str(caught.value)
    assert expected in str(caught.value)


def test_a_checkpoint_without_tensors_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds a dict without tensors; expected a state dict"):
        list(load_tensors(saved(tmp_path / "c.pt", {"epoch": 3})))


def ticks_of_each_thread() -> Callable[[], float]:
    """A clock that goes on by one whenever the same thread looks at it."""
    own = threading.local()

    def look() -> float:
        own.ticks = getattr(own, "ticks", 0.0) + 1.0
        return float(own.ticks)

    return look


def test_analyze_file(tmp_path: Path) -> None:
    bad = torch.full((2, 2), torch.nan)
    tensors = {"eye": EYE.half(), "bad": bad, "zero": torch.zeros(2, 3), "empty": torch.zeros(0, 3), "bias": EYE[0]}
    reasons: dict[str, str] = {}
    path = saved(tmp_path / "m.pt", {name: tensor.clone() for name, tensor in tensors.items()})
    rows = {row.layer: row for row in analyze_file(path, reasons.__setitem__, ticks_of_each_thread())}
    assert set(rows) == {"eye", "bad", "zero", "empty"}
    assert set(reasons) == {"bias"}
    eye = rows["eye"]
    assert (eye.run, eye.step, eye.shape, eye.source_dtype) == ("m.pt", None, (3, 3), "float16")
    assert eye.measure_seconds == 1.0
    assert eye.metrics["stable_rank"] == pytest.approx(3.0)
    assert [(row.finite, row.zero) for row in rows.values()] == [
        (True, False),
        (False, False),
        (True, True),
        (True, False),
    ]
    assert rows["bad"].metrics["effective_rank"] is None
    assert rows["bad"].to_json()["step"] is None
