import json
import os
import re
import stat
from pathlib import Path

import pytest

from rankd.config import ConfigError
from rankd.discovery import DiscoveryFile
from rankd_client.endpoints import Endpoints, read_discovery

BOUND = {
    "push": "tcp://0.0.0.0:7777",
    "alerts": "tcp://[::]:7778",
    "query": "tcp://10.0.0.7:7779",
    "http": "http://0.0.0.0:7780",
}


def test_it_says_where_the_daemon_is_until_it_ends(tmp_path: Path) -> None:
    path = tmp_path / "rankd.json"
    file = DiscoveryFile(path, "node7")
    assert not path.exists()
    file.write(BOUND, 1234.5, "public")
    assert read_discovery(path) == Endpoints("tcp://node7:7777", "tcp://node7:7778", "tcp://10.0.0.7:7779")
    fields = json.loads(path.read_text())
    assert fields.pop("host") and fields == {
        "version": 1,
        "push": "tcp://node7:7777",
        "alerts": "tcp://node7:7778",
        "query": "tcp://10.0.0.7:7779",
        "http": "http://node7:7780",
        "pid": os.getpid(),
        "started": 1234.5,
        "public_key": "public",
    }
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["rankd.json"]  # noqa: PTH208
    file.remove()
    assert not path.exists()
    file.remove()


def test_without_a_name_the_hosts_own_stands_for_all_addresses(tmp_path: Path) -> None:
    DiscoveryFile(tmp_path / "d").write(BOUND, 1.0)
    fields = json.loads((tmp_path / "d").read_text())
    assert fields["push"] == f"tcp://{fields['host']}:7777" and fields["public_key"] is None


def test_what_another_daemon_has_written_since_stays(tmp_path: Path) -> None:
    path = tmp_path / "rankd.json"
    first, second = DiscoveryFile(path, "node1"), DiscoveryFile(path, "node2")
    first.write(BOUND, 1.0)
    second.write(BOUND, 2.0)
    first.remove()
    assert read_discovery(path).push == "tcp://node2:7777"
    second.remove()
    assert not path.exists()


def test_addresses_of_this_host_alone_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    DiscoveryFile(tmp_path / "d", "node7").write({**BOUND, "push": "ipc:///run/push.sock"}, 1.0)
    assert "push can be reached on this host alone" in caplog.text
    assert read_discovery(tmp_path / "d").push == "ipc:///run/push.sock"


def test_a_place_that_cannot_be_written_to_is_refused_before_anything_begins(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"discovery='{tmp_path}/no/d': expected a file in a directory")):
        DiscoveryFile(tmp_path / "no" / "d")
    with pytest.raises(ConfigError, match="is there and is no file"):
        DiscoveryFile(tmp_path)


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    file = DiscoveryFile(tmp_path / "d")
    (tmp_path / "d").mkdir()
    with pytest.raises(OSError):
        file.write(BOUND, 1.0)
    assert os.listdir(tmp_path) == ["d"]  # noqa: PTH208
