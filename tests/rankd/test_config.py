import re
from pathlib import Path
from typing import Any

import pytest

from rankd.config import DEFAULT_HTTP, MAX_RUNS, ConfigError, Limits, ServeConfig, serve_config

URL = "ipc:///run/rankd"

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"colour": "red"}, "colour='red': no such setting; expected one of advertise, alerts, data, "),
    ({"http_any_port": True}, "http_any_port=True: no such setting"),
    ({"limits": {"max_run": 1}}, "limits.max_run=1: no such setting; expected one of assembly_timeout_seconds, "),
    ({"detect": {"emma": "info"}}, "detect.emma='info': no such setting; expected one of baseline_reset, "),
    ({"limits": 3}, "limits=3: expected a table"),
    ({"device": "gpu"}, "device='gpu': expected auto, cpu, cuda, cuda:N or cuda:N,cuda:M,…"),
    ({"device": "cuda,cuda:0"}, "device='cuda,cuda:0': expected auto, cpu, cuda, cuda:N or cuda:N,cuda:M,…"),
    ({"device": "cpu,cuda:0"}, "device='cpu,cuda:0': expected auto, cpu, cuda, cuda:N or cuda:N,cuda:M,…"),
    ({"device": "cuda:0,"}, "device='cuda:0,': expected auto, cpu, cuda, cuda:N or cuda:N,cuda:M,…"),
    ({"device": 3}, "device=3: expected a string"),
    ({"executor": "rays"}, "executor='rays': expected auto, threads, processes, inline, ray or ray://HOST:PORT"),
    ({"executor": "ray://head"}, "executor='ray://head': expected ray://HOST:PORT"),
    ({"executor": "ray", "device": "cuda:0"}, "device='cuda:0': expected auto or cpu, because Ray says who gets which"),
    ({"ray": {"max_bytes": 0}}, "ray.max_bytes=0: expected a positive int"),
    ({"ray": {"max_workers": 2000}}, "ray.max_workers=2000: expected at most 1024"),
    ({"insecure": "no"}, "insecure='no': expected true or false"),
    ({"data": 3}, "data=3: expected a path"),
    ({"http": "7780"}, "http='7780': expected HOST:PORT or off"),
    ({"http": "localhost:70000"}, "http='localhost:70000': expected HOST:PORT or off"),
    ({"http": 7780}, "http=7780: expected a string"),
    ({"url": "http://localhost"}, "url='http://localhost': expected ipc://DIR or tcp://HOST:PORT"),
    ({"url": "tcp://localhost:65534"}, "url='tcp://localhost:65534': alerts and query need the two ports above"),
    ({"url": "ipc://relative"}, "'ipc://relative/push.sock': expected an absolute path"),
    ({"url": "ipc:///" + "long/" * 20}, "a socket's path has at most 107 bytes, this one 11"),
    ({"push": "tcp://host"}, "push: 'tcp://host': expected tcp://HOST:PORT with a port from 0 to 65535"),
    ({"query": "udp://host:1"}, "query: 'udp://host:1': expected ipc://PATH or tcp://HOST:PORT"),
    ({"limits": {"drain_seconds": "1"}}, "limits.drain_seconds='1': expected a number"),
    ({"limits": {"drain_seconds": float("nan")}}, "limits.drain_seconds=nan: expected a positive float"),
    ({"limits": {"max_runs": True}}, "limits.max_runs=True: expected an integer"),
    ({"limits": {"max_runs": 0}}, "limits.max_runs=0: expected a positive int"),
    ({"limits": {"max_runs": MAX_RUNS + 1}}, f"limits.max_runs={MAX_RUNS + 1}: expected at most {MAX_RUNS}"),
    ({"limits": {"heartbeat_seconds": float("inf")}}, "limits.heartbeat_seconds=inf: expected 0.01 to 3600 seconds"),
    (
        {"limits": {"heartbeat_seconds": 11}},
        "limits.peer_timeout_seconds=30.0: expected at least three times",
    ),
    ({"limits": {"chunk_bytes": 1}}, "limits.chunk_bytes=1: expected 4194304 to 16777216 bytes"),
    ({"limits": {"credit_bytes": 5 << 20}}, "limits.chunk_bytes=8388608: expected at most limits.credit_bytes=5242880"),
    (
        {"limits": {"max_layer_bytes": 3 << 30}},
        "limits.max_layer_bytes=3221225472: expected at most limits.max_assembly",
    ),
    ({"limits": {"max_layers": 9}}, "limits.max_layers_per_run=16384: expected at most limits.max_layers=9"),
    ({"detect": {"ema": "loud"}}, "detect.ema is 'loud'; expected one of info, warning, critical, off"),
    ({"detect": {"ema_alpha": "x"}}, "detect.ema_alpha='x': expected a number"),
    ({"measure": {"tier": "fast"}}, "measure.tier is 'fast'; expected one of auto, norms, estimate, exact"),
    ({"measure": {"method": "gram"}}, "measure.method is 'gram'; expected one of auto, svdvals"),
    ({"measure": {"max_share": 1.5}}, "measure.max_share is 1.5; expected a share above 0 and up to 1"),
    ({"measure": {"max_share": "all"}}, "measure.max_share='all': expected a number"),
    ({"measure": {"max_every": 0}}, "measure.max_every is 0; expected a number of pushes, at least 1"),
    ({"measure": {"tolerance": float("nan")}}, "measure.tolerance is nan; expected a share above 0"),
    ({"measure": {"split": "*"}}, "measure.split='*': expected a table"),
    ({"measure": {"split": {"*.qkv": 3}}}, "measure.split is '*.qkv' = 3; expected a glob of layer names and a rule"),
    ({"detect": {"ema_alpha": 7}}, "alpha is 7; expected a weight above 0 and up to 1"),
    ({"url": "tcp://127.example.org:7777"}, "push=tcp://127.example.org:7777, "),
    (
        {"url": "tcp://0.0.0.0:7777"},
        "push=tcp://0.0.0.0:7777, alerts=tcp://0.0.0.0:7778, query=tcp://0.0.0.0:7779 would",
    ),
    ({"http": "0.0.0.0:80"}, "http=tcp://0.0.0.0:80 would listen beyond loopback without keys"),
]


@pytest.mark.parametrize(("settings", "words"), WRONG, ids=lambda case: str(case)[:60])
def test_a_wrong_setting_is_named_with_its_value_and_what_was_expected(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        serve_config({"url": URL, **settings})


def test_one_url_names_three_sockets_and_each_may_be_given_by_itself() -> None:
    config = serve_config({"url": URL, "alerts": "tcp://127.0.0.1:0", "data": "d", "device": None})
    assert config == ServeConfig(
        push=f"{URL}/push.sock", alerts="tcp://127.0.0.1:0", query=f"{URL}/query.sock", data=Path("d")
    )


def test_without_a_url_it_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANKD_URL", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1")
    assert serve_config({}).query == "ipc:///run/user/1/rankd/query.sock"


def test_only_the_default_http_port_may_be_exchanged() -> None:
    default, named = serve_config({"url": URL}), serve_config({"url": URL, "http": DEFAULT_HTTP})
    assert (default.http, default.http_any_port) == (DEFAULT_HTTP, True)
    assert (named.http, named.http_any_port) == (DEFAULT_HTTP, False)


def test_insecure_may_listen_anywhere_and_loopback_has_many_names() -> None:
    assert serve_config({"url": "tcp://0.0.0.0:7777", "insecure": True}).insecure
    for url in ("tcp://127.0.0.1:7777", "tcp://localhost:7777", "tcp://[::1]:7777", "tcp://127.1.2.3:0"):
        assert not serve_config({"url": url, "http": "[::1]:0"}).insecure


def test_keys_let_it_listen_anywhere_and_insecure_asks_for_none() -> None:
    settings = {"url": "tcp://0.0.0.0:7777", "http": "0.0.0.0:7780", "keys": "k"}
    assert serve_config(settings).asks_for_keys and serve_config(settings).keys == Path("k")
    assert not serve_config({**settings, "insecure": True}).asks_for_keys
    assert not serve_config({"url": URL}).asks_for_keys


def test_the_tables_reach_their_classes() -> None:
    config = serve_config({"url": URL, "limits": {"drain_seconds": 1}, "detect": {"ema": "off", "ema_window": 7}})
    assert serve_config({"url": URL, "http_hosts": ["rankd.example"]}).http_hosts == ("rankd.example",)
    assert config.limits == Limits(drain_seconds=1)
    assert (config.detect.ema, config.detect.ema_window) == ("off", 7)
    measure = serve_config({"url": URL, "measure": {"max_share": 1, "split": {"*.qkv": "q,k,v"}}}).measure
    assert (measure.tier, measure.max_share, measure.split) == ("auto", 1, {"*.qkv": "q,k,v"})
