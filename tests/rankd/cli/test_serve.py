import json
import socket
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from rankd.auth import Keyring
from rankd.cli import app
from rankd.config import DEFAULT_HTTP

STEERING = ("URL", "HTTP", "DATA", "DEVICE", "EXECUTOR", "CONFIG", "KEYS")


def refused(*options: str, **environment: str) -> str:
    """What `rankd serve` says as it refuses to start, with exit code 2 and nothing on stdout."""
    variables: dict[str, str | None] = {f"RANKD_{name}": environment.get(name) for name in STEERING}
    variables["XDG_CONFIG_HOME"] = environment.get("XDG_CONFIG_HOME", "/nowhere")
    result = CliRunner().invoke(app, ["serve", *options], env=variables)
    assert (result.exit_code, result.stdout) == (2, "")
    return result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--device", "gpu"], "device='gpu': expected auto, cpu, cuda, cuda:N or cuda:N,cuda:M,…"),
        (["--device", "cuda:77", "--http", "off"], "device='cuda:77': expected "),
        (["--device", "cuda:77,cuda:78", "--http", "off"], "device='cuda:77,cuda:78': expected "),
        (["--executor", "rays"], "executor='rays': expected auto, threads, processes, inline, ray or ray://HOST:PORT"),
        (["--url", "ftp://x"], "url='ftp://x': expected ipc://DIR or tcp://HOST:PORT"),
        (["--push", "x"], "push: 'x': expected ipc://PATH or tcp://HOST:PORT"),
        (["--http", "x"], "http='x': expected HOST:PORT or off"),
        (["--ema-severity", "loud"], "detect.ema is 'loud'; expected one of info, warning, critical, off"),
        (["--tier", "fast"], "measure.tier is 'fast'; expected one of auto, norms, estimate, exact"),
        (["--log-level", "loud"], "log_level='loud': expected debug, info, warning or error"),
        (
            ["--url", "tcp://0.0.0.0:0"],
            "push=tcp://0.0.0.0:0, alerts=tcp://0.0.0.0:0, query=tcp://0.0.0.0:0 would listen",
        ),
        (["--http", "0.0.0.0:7780"], "http=tcp://0.0.0.0:7780 would listen beyond loopback without keys"),
        (["--config", "/no/such.toml"], "config='/no/such.toml': expected a TOML file; "),
        (["--keys", "/no/such"], "keys='/no/such': no keyring; make one: rankd keys new NAME --keys /no/such"),
        (["--advertise", "a:1"], "advertise='a:1': expected a host name or address"),
        (["--url", "file:///x.json"], "url='file:///x.json' is where others find a daemon; expected ipc://DIR or"),
        (["--discovery", "/no/such/rankd.json"], "discovery='/no/such/rankd.json': expected a file in a directory"),
        (["--no-such-flag"], "No such option"),
    ],
    ids=lambda case: " ".join(case) if isinstance(case, list) else "",
)
def test_a_wrong_flag_is_named(options: list[str], words: str) -> None:
    assert words in refused(*options)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("device = ", "expected a TOML file; Invalid value"),
        ("serve = 3", "serve=3; expected a table"),
        ("[serves]", "no such table 'serves'; expected serve, limits, history, detect, measure or ray"),
        ("[serve]\ninsecure = 'no'", "insecure='no': expected true or false"),
        ("[serve]\nport = 1", "rankd.toml': [serve] port: no such setting; expected one of advertise, "),
        ("detect = 3", "detect=3: expected a table"),
        ("[serve]\nhttp_hosts = 'a'", "http_hosts='a': expected a list of strings"),
        ("[serve]\nhttp_hosts = ['a:80']", "http_hosts='a:80': expected host names without a port"),
        ("[history]\nmax_bytes = 'much'", "history.max_bytes='much': expected an integer"),
        ("[serve.limits]\nmax_runs = 1", "serve.limits; expected [limits], a table of its own"),
        ("measure = 3", "measure=3: expected a table"),
        ("[limits]\nmax_runs = 0", "limits.max_runs=0: expected a positive int"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    file = tmp_path / "rankd.toml"
    file.write_text(content)
    assert words in refused("--config", str(file))
    assert words in refused("--ema-severity", "info", CONFIG=str(file))


def test_file_before_environment_before_flags(tmp_path: Path) -> None:
    file = tmp_path / "rankd.toml"
    file.write_text("[serve]\ndevice = 'file'\n")
    assert "device='file'" in refused("--config", str(file))
    assert "device='environment'" in refused("--config", str(file), DEVICE="environment")
    assert "device='flag'" in refused("--config", str(file), "--device", "flag", DEVICE="environment")
    file.write_text("[detect]\nema = 'file'\nema_window = 0\n")
    assert "ema is 'file'" in refused("--config", str(file))
    assert "window is 0" in refused("--config", str(file), "--ema-severity", "info"), "a flag replaces one key"
    file.write_text("[measure]\ntier = 'file'\nmax_every = 0\n")
    assert "tier is 'file'" in refused("--config", str(file))
    assert "max_every is 0" in refused("--config", str(file), "--tier", "norms")


def test_the_default_http_port_gives_way(serve: Callable[..., Any], socket_dir: Path) -> None:
    host, port = DEFAULT_HTTP.split(":")
    try:
        taken = socket.create_server((host, int(port)))
    except OSError:
        taken = socket.socket()  # somebody's already
    with taken:
        program = [sys.executable, "-m", "rankd", "serve", "--device", "cpu"]
        daemon = serve("--url", f"ipc://{socket_dir}", command=program)
        assert daemon.ready["http"].startswith(f"http://{host}:") and daemon.ready["http"] != f"http://{DEFAULT_HTTP}"
        with urllib.request.urlopen(f"{daemon.ready['http']}/healthz", timeout=30) as answer:
            health = json.load(answer)
        assert (health["lag_seconds"], health["plan"]["tier"], health["plan"]["device"]) == (0, "auto", "cpu")
        named = serve("--url", f"ipc://{socket_dir}/b", "--http", DEFAULT_HTTP, command=program)
        code, errors = named.end(None)
        assert code == 1 and f"http={DEFAULT_HTTP} cannot be bound: " in errors
        second = serve("--url", f"ipc://{socket_dir}", "--http", "off", command=program)
        code, errors = second.end(None)
        assert code == 1 and errors.strip().endswith(
            f"rankd: push=ipc://{socket_dir}/push.sock is in use by another rankd"
        )
        assert daemon.end()[0] == 0


@pytest.mark.parametrize(("file", "mode"), [("server.key", 0o640), ("", 0o755), ("authorized", 0o755)])
def test_a_keyring_that_others_can_look_into_is_named(tmp_path: Path, file: str, mode: int) -> None:
    ring = tmp_path / "ring"
    Keyring(ring).create()
    (ring / file).chmod(mode)
    words = refused("--url", "tcp://127.0.0.1:0", "--keys", str(ring))
    assert repr(str(ring / file)) in words and f"has mode {mode:04o}" in words and "Traceback" not in words
