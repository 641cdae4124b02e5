"""Python processes without the two seconds that importing torch takes: forked from one that has imported it.

`Popen` and `run` are subprocess's. A command of this interpreter (`-m`, `-c` or a script, and no option before but `-W
error`) becomes a child of this process like any other, with its own standard streams, environment, directory, session
and exit code. Any other command is started as ever, and so is one whose environment has other settings that are read as
libraries load. Where it matters what a process imports, and how it starts, a test uses subprocess itself.

Each process that asks has a server of its own, from its first command to its end.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import inspect
import json
import os
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import types
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

IMPORTED = (
    "torch",
    "torch.distributed.fsdp",  # with Dynamo: the first optimizer imports both, 1.3 s
    "safetensors.torch",
    "rankd.cli",
    "rankd.daemon",
    "rankd_client.client",
)
READ_AT_START = ("PYTHON", "OMP_", "MKL_", "KMP_", "OPENBLAS_", "LD_", "MALLOC_", "TORCH", "PYTORCH_", "CUDA_")
"""How the names of variables begin that the interpreter reads, or a library as it is loaded."""

MAX_REQUEST_BYTES = 150_000
"""A datagram's limit is about 200 kB."""


class Popen(subprocess.Popen[Any]):
    """A subprocess.Popen that forks where it can."""

    def _execute_child(self, *given: Any) -> None:
        asked = _EXECUTE_CHILD.bind(self, *given).arguments
        request = None if any(asked[name] != value for name, value in PLAIN.items()) else _request(**asked)
        if request is None:
            super()._execute_child(*given)  # type: ignore[misc]
            return
        fds = [asked["p2cread"], asked["c2pwrite"], asked["errwrite"]]
        self.pid = _server().fork(request, [number if fd == -1 else fd for number, fd in enumerate(fds)])
        self._child_created = True
        self._close_pipe_fds(*(asked[name] for name in PIPES))  # type: ignore[attr-defined]


_EXECUTE_CHILD = inspect.signature(subprocess.Popen._execute_child)  # type: ignore[attr-defined]
PIPES = ("p2cread", "p2cwrite", "c2pread", "c2pwrite", "errread", "errwrite")
PLAIN = {"preexec_fn": None, "pass_fds": (), "shell": False, "process_group": -1, "uid": None, "gid": None, "umask": -1}
"""What a command must not ask for to be forked."""


def run(
    command: Sequence[Any],
    *,
    input: Any = None,
    capture_output: bool = False,
    timeout: float | None = None,
    check: bool = False,
    **options: Any,
) -> subprocess.CompletedProcess[Any]:
    """subprocess.run."""
    pipe = subprocess.PIPE
    options |= ({"stdin": pipe} if input is not None else {}) | (
        {"stdout": pipe, "stderr": pipe} if capture_output else {}
    )
    with Popen(command, **options) as process:
        try:
            out, errors = process.communicate(input, timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(command, process.returncode, out, errors)
    if check:
        done.check_returncode()
    return done


def _request(
    args: Any, env: Mapping[str, str] | None, cwd: Any, start_new_session: bool, **_: Any
) -> dict[str, Any] | None:
    """What the server is asked for; None where only a start from the beginning is the same."""
    command = [] if isinstance(args, str | bytes | os.PathLike) else [os.fsdecode(word) for word in args]
    environment = dict(os.environ if env is None else env)
    how = command[3:4] if command[1:3] == STRICT else command[1:2]
    if command[:1] != [sys.executable] or not how or (how[0].startswith("-") and how[0] not in ("-c", "-m")):
        return None
    if _early(environment) != _early(os.environ):
        return None
    return {
        "arguments": command[1:],
        "environment": environment,
        "directory": os.fsdecode(cwd or Path.cwd()),
        "session": bool(start_new_session),
    }


STRICT = ["-W", "error"]


def _early(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if name.startswith(READ_AT_START)}


class Server:
    """The asking side, in the process whose children they become."""

    def __init__(self) -> None:
        self._asking = threading.Lock()
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RANKD_")}
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, __file__, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env={**environment, "OPENBLAS_NUM_THREADS": "1"},  # NumPy's start with it
            )

    def fork(self, request: Mapping[str, Any], fds: Sequence[int]) -> int:
        """The new child's process id."""
        words = json.dumps(request).encode()
        assert len(words) <= MAX_REQUEST_BYTES
        with self._asking:
            # Its grandchild is ours as soon as the child between is gone. Other orphans are the system's.
            adopt_orphans(True)
            try:
                socket.send_fds(self._connection, [words], fds)
                answer = self._connection.recv(100)
                self._connection.recv(100)
            finally:
                adopt_orphans(False)
        if not answer:
            raise RuntimeError(f"the fork server ended with exit code {self._process.wait()}")
        return int(answer)

    def close(self) -> None:
        self._connection.close()
        self._process.communicate()


_servers: dict[int, Server] = {}


def _server() -> Server:
    """By process: a fork of this one has a server of its own."""
    if os.getpid() not in _servers:
        _servers[os.getpid()] = Server()
    return _servers[os.getpid()]


def close() -> None:
    """End this process's server, if it has one. Its children live on."""
    if (server := _servers.pop(os.getpid(), None)) is not None:
        server.close()


PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans(adopting: bool) -> None:
    """Whether descendants of this process whose parents end become its children."""
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, int(adopting), 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")


def serve(connection: socket.socket) -> dict[str, Any]:
    """Forks for each request; returns it in the child. Leaves when nobody asks any more."""
    for name in IMPORTED:
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1, "a fork has no threads but the one that forked"
    gc.collect()
    gc.freeze()  # a collection in a child would write to pages that it shares
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    asks = os.getppid()
    while True:
        words, fds, _, _ = socket.recv_fds(connection, MAX_REQUEST_BYTES, 3)
        if not words:
            raise SystemExit
        between = os.fork()
        if between == 0:
            between = os.getpid()
            if child := os.fork():
                connection.send(str(child).encode())
                os._exit(0)
            request: dict[str, Any] = json.loads(words)
            become(request, fds, connection)
            while os.getppid() == between:
                time.sleep(0.0005)
            assert os.getppid() == asks, "whoever asks has not adopted it, and would not hear how it ends"
            return request
        os.waitpid(between, 0)
        for fd in fds:
            os.close(fd)
        connection.send(b"yours")


def become(request: Mapping[str, Any], fds: Sequence[int], connection: socket.socket) -> None:
    """What a new process has from whoever starts it."""
    connection.close()
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
    for fd in fds:
        os.close(fd)
    if request["session"]:
        os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(request["directory"])
    os.environ.clear()
    os.environ.update(request["environment"])


def execute(arguments: list[str]) -> None:
    """`python ARGUMENTS`."""
    if arguments[:2] == STRICT:
        warnings.simplefilter("error")
        sys.warnoptions.append("error")
        arguments = arguments[2:]
    how, *rest = arguments
    if how == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif how == "-m":
        sys.argv, sys.path[0] = rest, str(Path.cwd())
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = arguments, str(Path(how).resolve().parent)
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    execute(serve(socket.socket(fileno=int(sys.argv[1])))["arguments"])
