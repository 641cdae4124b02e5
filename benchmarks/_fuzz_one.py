"""One target under atheris: run by fuzz_codec.py.

python benchmarks/_fuzz_one.py TARGET [options and corpus folders of libFuzzer]
"""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["rankd", "rankd_client", "_fuzz_targets"]):
    from _fuzz_targets import TARGETS


def main() -> None:
    target = TARGETS[sys.argv.pop(1)]
    atheris.Setup(sys.argv, target)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
