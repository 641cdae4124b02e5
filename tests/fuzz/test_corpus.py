"""Everything that fuzzing has found worth keeping, through every target again; benchmarks/fuzz_codec.py finds more."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
CORPUS = Path(__file__).parent / "corpus"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_targets", ROOT / "benchmarks" / "_fuzz_targets.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


targets = _load()


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_seed_and_every_finding_keeps_the_invariant(name: str) -> None:
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    seeds = targets.seeds(name)
    assert found and seeds
    for data in (*seeds, *found):
        targets.TARGETS[name](data)


def test_the_corpus_is_small_and_each_folder_has_its_target() -> None:
    files = [path for path in CORPUS.rglob("*") if path.is_file()]
    assert {path.parent.name for path in files} == set(targets.TARGETS)
    assert len(files) < 200
    assert sum(path.stat().st_size for path in files) < 300_000


def test_an_input_that_broke_the_invariant_would_be_seen() -> None:
    def accepts_all(frames: list[bytes]) -> bytes:
        return frames[0]

    with pytest.raises(AssertionError):
        targets._codec(accepts_all, lambda message: [message + b"!"])(b"x")
    with pytest.raises(ValueError, match="subsection not found"):
        targets._codec(lambda frames: b"x".index(b"y"), lambda message: [message])(b"x")
