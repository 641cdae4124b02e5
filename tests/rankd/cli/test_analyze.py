import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from rankd.cli import app


def analyze(*arguments: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, ["analyze", *arguments])
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def healthy(tmp_path: Path) -> str:
    file = tmp_path / "healthy.safetensors"
    save_file({"b.weight": torch.eye(4), "a.weight": torch.diag(torch.tensor([3.0, 4.0])), "bias": torch.ones(3)}, file)
    return str(file)


def test_json_rows_are_measurements(healthy: str) -> None:
    code, out, _ = analyze(healthy, "--json")
    rows = {row["layer"]: row for row in map(json.loads, out.splitlines())}
    assert (code, set(rows)) == (0, {"a.weight", "b.weight"})
    row = rows["a.weight"]
    assert (row["run"], row["step"], row["rows"], row["cols"], row["finite"]) == (
        "healthy.safetensors",
        None,
        2,
        2,
        True,
    )
    assert (row["spectral_norm"], row["frobenius_norm"]) == pytest.approx((4.0, 5.0))
    assert row["stable_rank"] == pytest.approx(25 / 16)


def test_the_table_has_a_line_a_matrix_and_says_what_was_left_out(healthy: str) -> None:
    code, out, _ = analyze(healthy, healthy)
    lines = out.splitlines()
    assert code == 0 and len(lines) == 8
    assert lines[0].split()[:3] == ["healthy.safetensors", "shape", "stable_rank"]
    assert any(line.split()[:5] == ["b.weight", "4", "x", "4", "4"] for line in lines)
    assert lines[3].startswith("left out: 1 tensor (1 dimensions")


def test_a_matrix_that_is_no_more_is_a_problem(tmp_path: Path) -> None:
    file = tmp_path / "sick.pt"
    torch.save({"nan\n\x1b[2J.weight": torch.full((2, 2), torch.nan), "zero.weight": torch.zeros(2, 2)}, file)
    code, out, _ = analyze(str(file))
    assert code == 1 and "non-finite" in out and "all zero" in out
    assert "\x1b" not in out, "names are escaped in a terminal"
    code, out, _ = analyze(str(file), "--json")
    values = [(row["finite"], row["stable_rank"]) for row in map(json.loads, out.splitlines())]
    assert code == 1 and sorted(values, key=str) == [(False, None), (True, 0.0)]


def test_a_file_that_cannot_be_read_is_wrong_use(tmp_path: Path, healthy: str) -> None:
    (tmp_path / "broken.pt").write_bytes(b"not a checkpoint")
    for file in ("broken.pt", "absent.pt", "notes.txt"):
        code, _, errors = analyze(healthy, str(tmp_path / file))
        assert code == 2 and file in errors and "expected" in errors and "Traceback" not in errors
    assert analyze()[0] == 2
