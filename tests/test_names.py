"""The word "rank" is never bare: stable_rank, effective_rank, process_rank mean something, rank alone does not."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted([*(ROOT / "rankd").rglob("*.py"), *(ROOT / "client" / "rankd_client").rglob("*.py")])
BARE = {"rank", "ranks"}
# (file, function, name) that others fixed: a published signature, and the variable that launchers set.
ALLOWED = {("rank_health.py", "check_warnings", "ranks"), ("plan.py", "process_world", "RANK")}


def names_of(node: ast.AST) -> Iterator[str]:
    """The names that a node gives to something, and the keys and labels that it writes as strings."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
        yield node.id if isinstance(node, ast.Name) else node.attr
    elif isinstance(node, ast.alias | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        yield (node.asname if isinstance(node, ast.alias) else node.name) or ""
    elif isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value


def find_bare(source: str, file: str) -> list[str]:
    found = []

    def walk(node: ast.AST, function: str) -> None:
        for name in names_of(node):
            if name.strip("_").lower() in BARE and (file, function, name) not in ALLOWED:
                found.append(f"{file}:{getattr(node, 'lineno', 0)} {name!r} in {function or 'the module'}")
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            function = node.name
        for child in ast.iter_child_nodes(node):
            walk(child, function)

    walk(ast.parse(source), "")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_rank_is_never_bare(path: Path) -> None:
    assert find_bare(path.read_text(), path.name) == []


@pytest.mark.parametrize(
    "source",
    [
        "rank = 1",
        "_ranks: list[int] = []",
        "def rank(): pass",
        "class Rank: pass",
        "def f(rank): pass",
        "def check_warnings(*, rank): pass",
        "self.rank = 1",
        "for rank in (): pass",
        "import x as rank",
        "row = {'rank': 1}",
        "def f():\n    with g() as ranks: pass",
    ],
)
def test_bare_rank_is_found(source: str) -> None:
    assert len(find_bare(source, "rank_health.py")) == 1
