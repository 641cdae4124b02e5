"""Coverage-guided fuzzing of everything that reads bytes of others: the codec, assembling, the subscriber, key
files, recordings.

    python benchmarks/fuzz_codec.py [--minutes M] [--targets NAME…] [--keep]

Needs atheris (`pip install -e '.[fuzz]'`, which `make bench-fuzz` does). Each target of benchmarks/_fuzz_targets.py has
its share of the time, in a process of its own that begins with the golden bytes and with tests/fuzz/corpus. A crash, a
hang (10 s) or more memory than a limit ends it, and the input is left in the directory that the row names. With --keep,
what reached new code is written to tests/fuzz/corpus, in as few and small files as stand for it. Prints one JSON line a
row, and exits with 1 if one misses its limit.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import FrameType
from typing import Any

from _daemon import clean_environment
from _fuzz_seeds import GOLDEN, seeds
from _fuzz_targets import FRAME, MESSAGE, TARGETS
from _report import Report

HERE = Path(__file__).parent
CORPUS = HERE.parent / "tests" / "fuzz" / "corpus"
MAX_INPUT_BYTES = 4096
MAX_KEPT_BYTES = 2048
MAX_KEPT_FILES = 20
HANG_SECONDS = 10
MAX_RSS_MIB = 512
"""numpy and our packages have 60; inputs are 4 kB, so nothing that grows with them has a reason to be larger."""

Arc = tuple[str, int, int]


def write_seeds(target: str, directory: Path) -> None:
    for number, data in enumerate(seeds(target)):
        (directory / f"seed{number:03}").write_bytes(data)


def write_dictionary(path: Path) -> None:
    """Words that chance would not find: the keys and values of the golden messages, in libFuzzer's format."""
    text = "".join((GOLDEN / name).read_text(encoding="utf-8") for name in ("protocol1.json", "refused1.json"))
    words = {word.encode() for word in re.findall(r'"([a-z][a-z0-9_@-]{1,30})"', text)} | {FRAME, MESSAGE}
    path.write_text("".join('"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in sorted(words)))


def fuzzer(target: str, *options: str | Path, seconds: float) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(HERE / "_fuzz_one.py"), target, *map(str, options)]
    return subprocess.run(
        command, capture_output=True, text=True, env=clean_environment(), timeout=seconds + 120, check=False
    )


def statistic(output: str, name: str) -> int:
    found = re.search(rf"stat::{name}:\s+(\d+)", output)
    return int(found[1]) if found else 0


def fuzz(report: Report, target: str, directory: Path, findings: Path, seconds: float) -> int:
    """The number of inputs tried. `directory` gets what reached new code."""
    for name in ("new", "seeds"):
        (directory / name).mkdir(parents=True)
    write_seeds(target, directory / "seeds")
    write_dictionary(directory / "words")
    options = [f"-max_total_time={max(1, round(seconds))}", f"-max_len={MAX_INPUT_BYTES}", f"-timeout={HANG_SECONDS}"]
    options += [f"-rss_limit_mb={MAX_RSS_MIB}", f"-dict={directory / 'words'}", "-print_final_stats=1"]
    options += [f"-artifact_prefix={findings / target}-"]
    known = CORPUS / target
    folders = [directory / "new", directory / "seeds", *([known] if known.is_dir() else [])]
    done = fuzzer(target, *options, *folders, seconds=seconds)
    num_inputs = statistic(done.stderr, "number_of_executed_units")
    more: dict[str, Any] = {"inputs": num_inputs, "inputs_kept": len(list((directory / "new").iterdir()))}
    if done.returncode:
        print(done.stderr[-3000:], file=sys.stderr)
    failed = int(done.returncode != 0)
    report.row(f"crashes_and_hangs_{target}", failed, 0, "inputs", findings=str(findings) if failed else None, **more)
    report.row(f"peak_rss_{target}", statistic(done.stderr, "peak_rss_mb"), MAX_RSS_MIB, "MiB")
    return num_inputs


def arcs(target: str, data: bytes) -> set[Arc]:
    """The steps from line to line in our packages that an input takes."""
    taken: set[Arc] = set()

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        if "/rankd" not in name:
            return None
        last = [0]

        def step(frame: FrameType, event: str, _: Any) -> Any:
            if event == "line":
                taken.add((name, last[0], frame.f_lineno))
                last[0] = frame.f_lineno
            return step

        return step

    sys.settrace(trace)
    try:
        TARGETS[target](data)
    finally:
        sys.settrace(None)
    return taken


def keep(target: str, directory: Path) -> None:
    """The corpus becomes the smallest inputs that together take every step which any of them takes."""
    known = CORPUS / target
    known.mkdir(parents=True, exist_ok=True)
    found = {path.read_bytes() for folder in (directory / "new", known) for path in folder.iterdir()}
    seen: set[Arc] = set()
    chosen: list[bytes] = []
    for data in sorted(found, key=lambda data: (len(data), data)):
        new = arcs(target, data) - seen
        if new and len(data) <= MAX_KEPT_BYTES and len(chosen) < MAX_KEPT_FILES:
            chosen.append(data)
            seen |= new
    shutil.rmtree(known)
    known.mkdir()
    for data in chosen:
        (known / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.5, metavar="M", help="of all targets; 10 is the full form")
    parser.add_argument("--inputs", type=int, default=10_000, metavar="N", help="at least; 1000000 is the full form")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS), metavar="NAME")
    parser.add_argument("--keep", action="store_true", help="what was found becomes the corpus")
    arguments = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        parser.error("atheris is not installed; expected `make bench-fuzz`, or pip install -e '.[fuzz]' before")
    report = Report()
    seconds = 60.0 * arguments.minutes / len(arguments.targets)
    findings = Path(tempfile.mkdtemp(prefix="rankd-findings-"))
    num_inputs = 0
    with tempfile.TemporaryDirectory(prefix="rankd-") as directory:
        for target in arguments.targets:
            num_inputs += fuzz(report, target, Path(directory) / target, findings, seconds)
            if arguments.keep:
                keep(target, Path(directory) / target)
    if not any(findings.iterdir()):
        findings.rmdir()
    report.row("inputs", num_inputs, arguments.inputs, "inputs", at_least=True)
    sys.exit(report.exit_code)


if __name__ == "__main__":
    main()
