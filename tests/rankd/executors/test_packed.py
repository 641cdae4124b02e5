"""Works, outcomes and settings as another process gets them."""

import msgpack
import numpy as np
import pytest
import torch
from works import snapshot, untimed, work

from rankd.executors import MeasureError, Work
from rankd.executors.packed import describe, describe_settings, outcome_of, pack_outcome, settings_from, work_of
from rankd.executors.solver import CPU, NotHereError, Solver
from rankd.parts import SplitRules
from rankd.weights import DEFAULT_SETTINGS, Settings


def test_a_work_is_the_same_there() -> None:
    pair = Work(snapshot(torch.randn(4, 3), "x.lora_A", source_dtype="bfloat16"), "norms", snapshot(torch.randn(5, 4)))
    for item in (pair, work(torch.randn(2, 3, 4).half(), "experts")):
        description, arrays = describe(item)
        there = work_of(msgpack.unpackb(msgpack.packb(description)), arrays)
        assert (there.tier, there.shape, there.num_bytes) == (item.tier, item.shape, item.num_bytes)
        for key in ("run", "layer", "step", "shape", "wire_dtype", "source_dtype", "role", "finite", "zero"):
            assert getattr(there.snapshot, key) == getattr(item.snapshot, key)
        assert np.array_equal(there.snapshot.data, item.snapshot.data)
        assert (there.partner is None) == (item.partner is None)


def test_what_came_of_it_is_the_same_here() -> None:
    weight = work(torch.randn(96, 32), "h.c_attn.weight", "estimate")
    found = Solver(CPU, print, DEFAULT_SETTINGS).measure(weight)
    back = outcome_of(pack_outcome(found))
    assert isinstance(back, list) and untimed(back) == untimed(found)
    assert [part.reading.seconds for part in back] == [part.reading.seconds for part in found]


@pytest.mark.parametrize("reason", ["memory", "unsolved", "lost", "gone"])
def test_why_there_is_none_too(reason: str) -> None:
    back = outcome_of(pack_outcome(NotHereError(reason)))  # type: ignore[arg-type]
    assert isinstance(back, NotHereError) and back.reason == reason


def test_errors_keep_their_words() -> None:
    refused, ours = (outcome_of(pack_outcome(kind("odd"))) for kind in (MeasureError, ZeroDivisionError))
    assert isinstance(refused, MeasureError) and str(refused) == "odd"
    assert type(ours) is RuntimeError and str(ours) == "in another process: ZeroDivisionError: odd"


def test_settings_are_the_same_there() -> None:
    rules = SplitRules.parse({"*.odd": "q,k,v;heads=4", "*": "none"})
    settings = Settings(0.02, True, rules, ("power_law_alpha",))
    for each in (settings, DEFAULT_SETTINGS):
        assert settings_from(msgpack.unpackb(msgpack.packb(describe_settings(each)))) == each
