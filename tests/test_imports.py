"""Who may import what, read off the source of every module. A rule lists the modules that may; every other module, a
new one too, may not.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"rankd": ROOT / "rankd", "rankd_client": ROOT / "client" / "rankd_client"}

CLI = ("rankd.cli", "rankd.demo")  # the daemon's side that acts as a trainer or a subscriber
CLIENT_SOCKETS = (
    "rankd_client.client",
    "rankd_client.link",
    "rankd_client.subscriber",
    "rankd_client.keys",
    "rankd_client.outletthread",  # ends before ZeroMQ does
)
DAEMON_SOCKETS = (
    "rankd.stages.receive",
    "rankd.stages.publish",
    "rankd.query",
    "rankd.auth",
    "rankd.web",
    "rankd.daemon",
    "rankd.doctor.daemon",  # a peer that asks each of them
    "rankd.doctor.probe",
    "rankd.gate",  # asks libzmq which of its descriptors a message came by
    "rankd.door",  # asks libzmq whose a message is
    "rankd.sockets",  # binds the daemon's three addresses for it
    "rankd.lent.listener",  # the socket by which memory is lent
)

# What is imported -> the modules (with everything below them) that may import it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "zmq": (*CLIENT_SOCKETS, *DAEMON_SOCKETS),
    "torch": (
        "rankd.spectrum",
        "rankd.metrics",
        "rankd.parts",
        "rankd.engine",
        "rankd.weights",
        "rankd.executors",
        "rankd.rank_health",
        "rankd.checkpoint",
        "rankd.demo",
        "rankd_client.copies",
        "rankd_client.watch",
    ),
    "asyncio": (
        *CLI,
        *DAEMON_SOCKETS,
        "rankd.composition",  # hands on the event by which the daemon is stopped
        "rankd.crossing",
        "rankd.executors",
        "rankd.health",
        "rankd.mailbox",
        "rankd.plan.beside",
        "rankd.reading",
        "rankd.stages.measure",
        "rankd.stages.record",
        "rankd.stages.reports",
        "rankd.supervise",
        "rankd_client.subscriber",
    ),
    "ray": ("rankd.executors.ray.cluster", "rankd.executors.ray.crew", "rankd.executors.ray.driver"),  # not the daemon
    "rankd.stages": ("rankd.composition", "rankd.daemon"),  # one puts them together, the other hands on between them
    "rankd_client": (*CLI, "rankd.sync"),
}
# What the daemon shares with its client: the protocol, the names of layers, what a URL stands for, key files, memory.
SHARED = tuple(f"rankd_client.{name}" for name in ("wire", "naming", "endpoints", "keys", "memfd"))
CLIENT_MAY_IMPORT = {"rankd_client", "zmq", "msgpack", "torch", *sys.stdlib_module_names}


@dataclass(frozen=True)
class Import:
    """One import statement's target; `when` is "module" (on import), "function" (on call) or "typing" (never)."""

    target: str
    when: str
    line: int


def is_within(module: str, packages: Iterable[str]) -> bool:
    """Whether `module` is one of `packages` or lies below one."""
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def find_modules() -> dict[str, Path]:
    """Every module of both packages by its dotted name."""
    modules = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            modules[".".join((package, *(p for p in parts if p != "__init__")))] = path
    return modules


MODULES = find_modules()


def targets_of(node: ast.AST, module: str) -> Iterator[str]:
    """Dotted names that a statement imports: of `from a import b` the module a.b if there is one, else a."""
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = node.module or ""
        if node.level:
            path = MODULES.get(module)
            package = module.split(".") if path and path.name == "__init__.py" else module.split(".")[:-1]
            base = ".".join([*package[: len(package) - node.level + 1], *([node.module] if node.module else [])])
        for alias in node.names:
            below = f"{base}.{alias.name}"
            yield below if below in MODULES else base
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if name in {"import_module", "__import__"}:
            yield str(node.args[0].value)


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}


def find_imports(source: str, module: str) -> list[Import]:
    found: list[Import] = []

    def walk(node: ast.AST, when: str) -> None:
        found.extend(Import(target, when, getattr(node, "lineno", 0)) for target in targets_of(node, module))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            when = "function" if when == "module" else when
        if isinstance(node, ast.If) and is_type_checking(node):
            for child in node.body:
                walk(child, "typing")
            for child in node.orelse:
                walk(child, when)
            return
        for child in ast.iter_child_nodes(node):
            walk(child, when)

    walk(ast.parse(source), "module")
    return found


def why_not(module: str, imported: Import) -> str | None:
    """The rule that forbids this import, or None. An import for typing alone is coupling too, but costs no torch."""
    target, when = imported.target, imported.when
    in_client = is_within(module, ["rankd_client"])
    if in_client and target.split(".")[0] not in CLIENT_MAY_IMPORT:
        return "the client imports itself, the standard library, zmq, msgpack and torch alone"
    if in_client and is_within(target, ["torch"]) and when == "module":
        return "the client imports torch only inside functions"
    if (
        is_within(module, ("rankd.records",))
        and is_within(target, PACKAGES)
        and not is_within(target, ("rankd.records",))
    ):
        return "records imports nothing of ours"
    if is_within(module, ["rankd.stages"]) and is_within(target, ["rankd.stages"]):
        return "stages do not know one another"
    restricted = next((name for name in MAY_IMPORT if is_within(target, [name])), None)
    if restricted is None or is_within(module, MAY_IMPORT[restricted]):
        return None
    if restricted == "rankd_client" and (in_client or is_within(target, SHARED)):
        return None
    if restricted == "torch" and (when == "typing" or (when == "function" and is_within(module, CLI))):
        return None
    return f"{restricted} is for {', '.join(MAY_IMPORT[restricted])}"


def find_violations(source: str, module: str) -> list[str]:
    return [
        f"{module}:{imported.line} imports {imported.target}: {reason}"
        for imported in find_imports(source, module)
        if (reason := why_not(module, imported))
    ]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_it_may(module: str) -> None:
    assert find_violations(MODULES[module].read_text(), module) == []


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rankd_client.new", "import rankd"),
        ("rankd_client.new", "def f():\n    from rankd.records import Alert"),
        ("rankd_client.new", "import numpy"),
        ("rankd_client.new", "import zmq"),
        ("rankd_client.new", "def f():\n    import torch"),
        ("rankd_client.watch", "import torch"),
        ("rankd_client.watch", "try:\n    import torch\nexcept ImportError:\n    torch = None"),
        ("rankd_client.watch", "class Pushed:\n    import torch.nn"),
        ("rankd.new", "import zmq.asyncio"),
        ("rankd.new", "from torch import nn"),
        ("rankd.new", "import asyncio"),
        ("rankd.new", "from rankd_client import Client"),
        ("rankd.new", "from rankd_client.client import Client"),
        ("rankd.new", "from rankd.stages.receive import Receiver"),
        ("rankd.new", "from rankd import stages"),
        ("rankd.new", "import_module('torch')"),
        ("rankd.stages.detect", "import asyncio"),
        ("rankd.stages.detect", "from rankd.stages.record import Recorder"),
        ("rankd.stages.detect", "from . import record"),
        ("rankd.stages.detect", "if TYPE_CHECKING:\n    from .record import Recorder"),
        ("rankd.records", "from rankd import metrics"),
        ("rankd.records", "from rankd_client import wire"),
        ("rankd.cli.serve", "import torch"),
    ],
)
def test_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(find_violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("rankd_client.watch", "def f():\n    import torch"),
        ("rankd_client.watch", "if TYPE_CHECKING:\n    import torch"),
        ("rankd_client.new", "from . import wire\nfrom .wire import decode\nimport msgpack, os"),
        ("rankd.new", "from rankd_client import wire\nfrom rankd_client.wire.codec import decode"),
        ("rankd.cli.tail", "from rankd_client import subscribe"),
        ("rankd.daemon", "import asyncio, zmq\nfrom rankd.stages.detect import Detect"),
        ("rankd.stages.detect", "from rankd.records import Alert"),
    ],
)
def test_allowed_import_passes(module: str, source: str) -> None:
    assert find_violations(source, module) == []


HEAVY = {"torch", "numpy", "typer", "rich", "pydantic", "starlette", "uvicorn", "safetensors", "hypothesis"}


@pytest.mark.parametrize(
    "arguments", [("-c", "import rankd"), ("-c", "import rankd_client"), ("-m", "rankd", "--version")], ids=" ".join
)
def test_import_is_light(arguments: tuple[str, ...]) -> None:
    """Importing either package, and asking for the version, loads nothing that takes a tenth of a second or more."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.splitlines()}
    assert "rankd_client" in loaded or "rankd" in loaded
    assert loaded & HEAVY == set()
