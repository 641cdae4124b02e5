"""What `import rankd` gives, and what it does not import."""

import subprocess
import sys

import pytest

import rankd


def test_exports_are_there() -> None:
    for name in rankd.__all__:
        assert getattr(rankd, name).__name__ == name
    assert set(rankd.__all__) <= set(dir(rankd))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = rankd.nonsense


def test_neither_rankd_nor_its_judging_imports_torch() -> None:
    code = (
        "import sys, rankd, rankd.judge, rankd.detectors; rankd.RankTrendDetector;"
        "sys.exit(sum(name in sys.modules for name in ('torch', 'asyncio', 'zmq')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
