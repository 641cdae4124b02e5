"""What subscribe() refuses before any socket exists."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankd_client.endpoints import EndpointError
from rankd_client.subscriber import asubscribe, subscribe


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"endpoint": "http://x"}, "expected ipc://DIR or tcp://HOST:PORT"),
        ({"endpoint": 7}, "endpoint=7; expected"),
        ({"alerts": b"ipc:///x"}, "alerts=b'ipc:///x'; expected"),
        ({"endpoint": "tcp://127.0.0.1:0"}, "expected the daemon's port"),
        ({"alerts": ""}, "expected ipc://PATH"),
        ({"run": ""}, "run=''; expected"),
        ({"run": 7}, "run=7; expected"),
        ({"run": "a\0b"}, "without NUL"),
        ({"run": "r" * 300}, "1 to 256"),
        ({"layers": "*.mlp.*"}, "expected globs in a tuple"),
        ({"layers": (7,)}, "expected globs in a tuple"),
        ({"streams": "alert"}, "expected a tuple"),
        ({"streams": ()}, "expected a tuple"),
        ({"streams": ("alerts",)}, "expected a tuple"),
        ({"timeout": -1}, "timeout=-1; expected seconds"),
        ({"timeout": float("nan")}, "timeout=nan; expected seconds"),
        ({"timeout": float("inf")}, "timeout=inf; expected seconds"),
        ({"timeout": "5"}, "timeout='5'; expected seconds"),
        ({"timeout": True}, "timeout=True; expected seconds"),
    ],
)
@pytest.mark.parametrize("function", [subscribe, asubscribe])
def test_wrong_arguments_fail_at_the_call(function: Any, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message.replace("(", r"\(")):
        function(**{"endpoint": f"ipc://{tmp_path}"} | options)


def test_directory_open_to_everyone_is_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o777)
    with pytest.raises(EndpointError, match="writable by everyone"):
        subscribe(f"ipc://{shared}")


def test_unusable_address_names_itself() -> None:
    with pytest.raises(EndpointError, match=r"tcp://no such host!:5"):
        subscribe(alerts="tcp://no such host!:5", query="tcp://127.0.0.1:1")
