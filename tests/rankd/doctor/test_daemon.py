import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq
from typer.testing import CliRunner

from rankd.auth.keyring import new_pair
from rankd.cli import app
from rankd.doctor import Finding, daemon, files, web
from rankd.doctor.daemon import check_daemon
from rankd.gate.peers import NUM_SPARE_FILES


def findings(url: str, key: Path | None = None) -> dict[str, Finding]:
    return {finding.check: finding for finding in check_daemon(url, key)}


@pytest.fixture
def short_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "PATIENCE_SECONDS", 0.3)


@pytest.fixture
def long_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """For a daemon that is well, and slow only because the tests' machine is."""
    monkeypatch.setattr(daemon, "PATIENCE_SECONDS", 30.0)
    monkeypatch.setattr(daemon, "SLOW_SECONDS", 30.0)
    monkeypatch.setattr(web, "PATIENCE_SECONDS", 30.0)


@pytest.fixture
def routers() -> Iterator[Callable[..., list[str]]]:
    """Makes sockets on loopback that never say a word: `routers(3)`, with a secret key for CURVE."""
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    sockets: list[zmq.Socket[bytes]] = []

    def make(num: int, secret: str | None = None) -> list[str]:
        addresses = []
        for _ in range(num):
            socket = context.socket(zmq.ROUTER)
            sockets.append(socket)
            if secret is not None:
                socket.curve_server, socket.curve_secretkey = True, secret.encode()
            socket.bind("tcp://127.0.0.1:*")
            bound: bytes = socket.getsockopt(zmq.LAST_ENDPOINT)  # type: ignore[assignment]
            addresses.append(bound.rstrip(b"\0").decode())
        return addresses

    yield make
    for socket in sockets:
        socket.close(linger=0)
    context.term()


def discovery(file: Path, addresses: list[str]) -> str:
    fields = {"version": 1, **dict(zip(("push", "alerts", "query"), addresses, strict=True))}
    file.write_text(json.dumps(fields))
    file.chmod(0o644)
    return file.as_uri()


@pytest.mark.usefixtures("long_patience")
def test_a_daemon_that_is_well(serve: Callable[..., Any], socket_dir: Path) -> None:
    serve("--url", f"ipc://{socket_dir}")
    found = findings(f"ipc://{socket_dir}")
    assert all(finding.ok for finding in found.values()), found
    assert {"push", "alerts", "query", "daemon_clock", "drops", "fault", "plan"} <= found.keys()
    assert " ms" in found["query"].text and "state 'serving'" in found["alerts"].text


def test_no_daemon_at_all(socket_dir: Path, tmp_path: Path) -> None:
    found = findings(f"ipc://{socket_dir}")
    assert [finding.ok for finding in found.values()] == [False] * 3
    assert "does not exist" in found["push_address"].text and "rankd serve" in found["push_address"].advice
    assert "no such file" in findings((tmp_path / "d").as_uri())["addresses"].text
    assert "expected ipc://DIR" in findings("ftp://x")["addresses"].text


@pytest.mark.usefixtures("short_patience")
def test_nobody_listens(tmp_path: Path) -> None:
    found = findings(discovery(tmp_path / "d", ["tcp://127.0.0.1:1"] * 3))
    for name in ("push", "alerts", "query"):
        assert found[f"{name}_address"].ok and not found[name].ok and "nobody listens there" in found[name].text


@pytest.mark.usefixtures("short_patience")
def test_who_listens_is_silent(tmp_path: Path, routers: Callable[..., list[str]]) -> None:
    found = findings(discovery(tmp_path / "d", routers(3)))
    assert "connected, but no answer" in found["query"].text and "connected, but no answer" in found["push"].text


@pytest.mark.usefixtures("short_patience")
def test_who_listens_asks_for_a_key(tmp_path: Path, routers: Callable[..., list[str]]) -> None:
    found = findings(discovery(tmp_path / "d", routers(3, new_pair()[1])))
    assert "no answer to a peer without a key" in found["query"].text and "--key" in found["query"].advice


def test_a_key_file_that_cannot_be_read(tmp_path: Path, routers: Callable[..., list[str]]) -> None:
    found = findings(discovery(tmp_path / "d", routers(3)), tmp_path / "no.key")
    assert not found["key"].ok and "no.key" in found["key"].text


@pytest.mark.usefixtures("long_patience")
def test_the_key_of_a_namespace_hears_the_heartbeats_of_its_own(serve: Callable[..., Any], tmp_path: Path) -> None:
    for name, *options in (("alice", "--namespace", "team"), ("root", "--rights", "admin"), ("carl",)):
        options += ["--keys", str(tmp_path / "ring"), "-o", str(tmp_path / f"{name}.key")]
        assert CliRunner().invoke(app, ["keys", "new", name, *options]).exit_code == 0
    daemon = serve("--url", "tcp://127.0.0.1:0", "--keys", str(tmp_path / "ring"))
    url = discovery(tmp_path / "d", [daemon.ready[name] for name in ("push", "alerts", "query")])
    for name in ("alice", "root", "carl"):
        found = findings(url, tmp_path / f"{name}.key")
        assert "alerts" in found and all(finding.ok for finding in found.values()), (name, found)


@pytest.mark.usefixtures("short_patience")
def test_a_daemon_that_has_no_file_left_is_named(socket_dir: Path, serve: Callable[..., Any]) -> None:
    daemon = serve("--url", f"ipc://{socket_dir}")
    pid = daemon.process.pid
    found = files.open_files_of(daemon.ready["query"])
    assert found is not None and found.pid == pid and not found.used_up and 3 < found.num_open < found.limit
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))  # how many it has open differs from moment to moment
    told = findings(f"ipc://{socket_dir}")["query"]
    assert not told.ok and f"(process {pid}) has" in told.text and "files open" in told.text
    assert "LimitNOFILE=" in told.advice


def test_files_are_used_up_when_the_gate_takes_nobody_in() -> None:
    assert files.OpenFiles(pid=1, num_open=100 - NUM_SPARE_FILES + 1, limit=100).used_up
    assert not files.OpenFiles(pid=1, num_open=100 - NUM_SPARE_FILES, limit=100).used_up


def test_a_clock_apart_drops_and_faults_are_problems() -> None:
    assert not daemon._compare_clocks(0.0).ok and daemon._compare_clocks(None).ok
    assert daemon._check_drops({"dropped_superseded": 5}).ok
    left = daemon._check_drops({"dropped_answers": 7})
    assert left.ok and left.text == "dropped_answers=7 (to clients that had left, or did not read)"
    assert not daemon._check_drops({"dropped_unmeasured": 5}).ok
    alert = {"run": "@daemon", "rule": "daemon_history", "message": "full", "advice": "Make room."}
    (finding,) = daemon._check_state({"alerts": [alert], "counters": {}})
    assert (finding.ok, finding.text, finding.advice) == (False, "history: full", "Make room.")
    (finding,) = daemon._check_state({"alerts": []})
    assert finding.ok and "only admins" in finding.text
    told, _ = daemon._check_state({"namespace": "", "capacity": {"num_slots": 2}})
    assert "in your namespace" in told.text and "keeps up" not in told.text
    told, _ = daemon._check_state({"namespace": None, "capacity": {"num_slots": 2}})
    assert told.text.startswith("measuring keeps up")


@pytest.mark.usefixtures("long_patience")
def test_the_command(
    serve: Callable[..., Any], socket_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    for name in ("RANKD_URL", "RANKD_DATA", "RANKD_KEY", "RANKD_KEYS", "RANKD_HTTP", "RANKD_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    file, data = tmp_path / "rankd.json", tmp_path / "data"
    served = serve(
        *("--url", f"ipc://{socket_dir}", "--http", "127.0.0.1:0", "--data", str(data), "--discovery", str(file))
    )
    options = ["doctor", "--config", "off", "--url", file.as_uri(), "--data", str(data), "--json"]
    result = CliRunner().invoke(app, options)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert result.exit_code == 0, result.output
    assert {row["status"] for row in rows} == {"ok"} and all(row.keys() == rows[0].keys() for row in rows)
    assert {"query", "http", "ready", "history_content", "keys", "device"} <= {row["check"] for row in rows}
    assert served.end()[0] == 0 and not file.exists()
    result = CliRunner().invoke(app, options[:-1])
    assert result.exit_code == 1 and "PROBLEM  addresses: " in result.stdout
    result = CliRunner().invoke(app, ["doctor", "--config", "off", "--data", str(data)])
    assert result.exit_code == 0, "without a URL a history is looked at alone"
