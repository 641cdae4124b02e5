"""Everything that fuzzing has found worth keeping, through every target again; benchmarks/fuzz_codec.py finds more."""

import importlib
import sys
from pathlib import Path

import pytest

CORPUS = Path(__file__).parent / "corpus"

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
try:
    targets, seeds = (importlib.import_module(name) for name in ("_fuzz_targets", "_fuzz_seeds"))
finally:
    del sys.path[0]


@pytest.mark.parametrize("name", targets.TARGETS)
def test_every_seed_and_every_finding_keeps_the_invariant(name: str) -> None:
    found = [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
    begun = seeds.seeds(name)
    assert found and begun
    for data in (*begun, *found):
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
