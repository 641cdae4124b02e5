import asyncio
import contextlib
import itertools
import os
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from rankd.config import ConfigError, ServeConfig, serve_config
from rankd.sockets import BindError, Sockets, receive_now, send_now
from rankd_client.endpoints import endpoints_of

HOLD = """
import asyncio, sys
from rankd.config import serve_config
from rankd.sockets import Sockets

async def main():
    sockets = Sockets(serve_config({"url": sys.argv[1], "http": "off"}))
    print("bound", flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


@contextlib.contextmanager
def bound(url: str, insecure: bool = False) -> Iterator[Sockets]:
    endpoints = endpoints_of(url)
    sockets = Sockets(ServeConfig(endpoints.push, endpoints.alerts, endpoints.query, http="off", insecure=insecure))
    try:
        yield sockets
    finally:
        sockets.close(linger_ms=0)


async def answers(sockets: Sockets) -> bool:
    """Whether a client gets through to the push socket."""
    client = sockets.context.socket(zmq.DEALER)
    client.connect(sockets.addresses["push"])
    await client.send(b"x")
    frames = await asyncio.wait_for(sockets.push.recv_multipart(), 30)
    client.close(linger=0)
    return frames[1:] == [b"x"]


async def test_any_port_gives_three_in_a_row() -> None:
    with bound("tcp://127.0.0.1:0") as sockets, bound("tcp://127.0.0.1:0") as others:
        ports = []
        for name in ("push", "alerts", "query"):
            host, port = sockets.addresses[name].rsplit(":", 1)
            assert host == "tcp://127.0.0.1"
            ports.append(int(port))
        assert ports == [ports[0], ports[0] + 1, ports[0] + 2]
        assert endpoints_of(sockets.addresses["push"]).query == sockets.addresses["query"]
        assert not set(others.addresses.values()) & set(sockets.addresses.values())
        assert await answers(sockets)


async def test_each_may_ask_for_any_port_by_itself(socket_dir: Path) -> None:
    sockets = Sockets(ServeConfig("tcp://127.0.0.1:0", f"ipc://{socket_dir}/a", f"ipc://{socket_dir}/q", http="off"))
    try:
        assert sockets.addresses["push"] != "tcp://127.0.0.1:0"
        assert sockets.addresses["alerts"] == f"ipc://{socket_dir}/a"
    finally:
        sockets.close(linger_ms=0)


async def test_a_port_in_use_is_refused_and_its_owner_goes_on() -> None:
    with bound("tcp://127.0.0.1:0") as sockets:
        with pytest.raises(BindError, match=r"push=tcp://127\.0\.0\.1:\d+ is in use; is another rankd running there\?"):
            Sockets(ServeConfig(*sockets.addresses.values(), http="off"))
        assert await answers(sockets)


async def test_so_many_connections_of_one_peer_as_the_settings_allow(socket_dir: Path) -> None:
    counters: Counter[str] = Counter()
    limits = {"max_connections_per_peer": 2}
    sockets = Sockets(serve_config({"url": f"ipc://{socket_dir}", "http": "off", "limits": limits}), counters=counters)
    clients = [sockets.context.socket(zmq.DEALER) for _ in range(3)]
    one_more = clients[-1].get_monitor_socket(zmq.EVENT_DISCONNECTED)
    try:
        for client in clients[:2]:
            client.connect(sockets.addresses["push"])
            await client.send(b"x")
            assert (await asyncio.wait_for(sockets.push.recv_multipart(), 30))[1:] == [b"x"]
        clients[-1].connect(sockets.addresses["push"])
        await asyncio.wait_for(one_more.recv_multipart(), 30)
        assert counters["num_cut_too_many_connections"] == 1
    finally:
        for client in clients:
            client.close(linger=0)
        sockets.close(linger_ms=0)


async def test_what_is_there_is_received_at_once_or_not_at_all(socket_dir: Path) -> None:
    with bound(f"ipc://{socket_dir}") as sockets:
        assert receive_now(sockets.push) is None
        client = sockets.context.socket(zmq.DEALER)
        client.connect(sockets.addresses["push"])
        await client.send(b"x")
        assert await asyncio.wait_for(sockets.push.poll(), 30)
        received = receive_now(sockets.push)
        assert received is not None and [frame.bytes for frame in received[1:]] == [b"x"]
        assert receive_now(sockets.push) is None
        client.close(linger=0)


async def test_an_unknown_host_is_named() -> None:
    with (
        pytest.raises(BindError, match=r"push=tcp://no\.such\.host\.invalid:0 cannot be bound"),
        bound("tcp://no.such.host.invalid:0", insecure=True),
    ):
        pass


async def test_a_second_daemon_is_refused_and_the_first_goes_on(socket_dir: Path) -> None:
    with bound(f"ipc://{socket_dir}") as sockets:
        with pytest.raises(BindError, match=f"push=ipc://{socket_dir}/push.sock is in use by another rankd"):
            Sockets(ServeConfig(*sockets.addresses.values(), http="off"))
        assert await answers(sockets)
    with bound(f"ipc://{socket_dir}") as sockets:
        assert await answers(sockets), "the address is free again"


async def test_only_the_owner_can_reach_the_sockets(socket_dir: Path) -> None:
    before = os.umask(0)
    try:
        with bound(f"ipc://{socket_dir}/new") as sockets:
            assert stat.S_IMODE((socket_dir / "new").stat().st_mode) == 0o700
            for address in sockets.addresses.values():
                assert stat.S_IMODE(os.stat(address.removeprefix("ipc://")).st_mode) == 0o600  # noqa: PTH116
    finally:
        os.umask(before)


async def test_what_a_killed_daemon_left_is_taken_over(socket_dir: Path) -> None:
    url = f"ipc://{socket_dir}"
    with subprocess.Popen(  # noqa: ASYNC220
        [sys.executable, "-c", HOLD, url], stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "bound\n"
        with pytest.raises(BindError, match="is in use by another rankd"), bound(url):
            pass
        holder.send_signal(signal.SIGKILL)
        holder.wait(30)
    assert (socket_dir / "push.sock").is_socket()
    with bound(url) as sockets:
        assert await answers(sockets)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a directory away")
async def test_a_directory_of_somebody_else_is_refused(socket_dir: Path) -> None:
    theirs = socket_dir / "theirs"
    theirs.mkdir()
    os.chown(theirs, 12345, -1)
    with (
        pytest.raises(ConfigError, match=r"push: .*belongs to user id 12345; expected 0 \(this user\)"),
        bound(f"ipc://{theirs}"),
    ):
        pass
    assert list(theirs.iterdir()) == []


async def test_a_directory_that_everyone_can_write_to_is_refused(socket_dir: Path) -> None:
    os.chmod(socket_dir, 0o777)  # noqa: PTH101
    with pytest.raises(ConfigError, match="is writable by everyone; expected mode 0700"), bound(f"ipc://{socket_dir}"):
        pass


@pytest.mark.parametrize("taken", ["file", "directory"])
async def test_what_is_no_socket_is_never_deleted(socket_dir: Path, taken: str) -> None:
    path = socket_dir / "push.sock"
    path.mkdir() if taken == "directory" else path.write_text("a thesis")
    with (
        pytest.raises(ConfigError, match=r"push=ipc://.*/push\.sock is there and is no socket"),
        bound(f"ipc://{socket_dir}"),
    ):
        pass
    assert path.is_dir() or path.read_text() == "a thesis"


async def test_a_lock_that_leads_elsewhere_is_not_followed(socket_dir: Path) -> None:
    (socket_dir / "victim").write_text("kept")
    (socket_dir / "push.sock.lock").symlink_to("victim")
    with pytest.raises(BindError, match="cannot be made"), bound(f"ipc://{socket_dir}"):
        pass
    assert (socket_dir / "victim").read_text() == "kept"


async def test_a_directory_that_cannot_be_made_is_named(socket_dir: Path) -> None:
    (socket_dir / "file").touch()
    with (
        pytest.raises((BindError, ConfigError), match=f"push.*{socket_dir}/file"),
        bound(f"ipc://{socket_dir}/file/below"),
    ):
        pass


async def test_send_now_tells_nobody_from_a_mistake_of_ours(socket_dir: Path) -> None:
    with bound(f"ipc://{socket_dir}") as sockets:
        assert not send_now(sockets.push, [b"nobody", b"x"])
        with pytest.raises(TypeError):
            send_now(sockets.push, [b"nobody", "text"])  # type: ignore[list-item]


ROUTING_IDS = """
import asyncio, zmq
from rankd.config import serve_config
from rankd.sockets import Sockets

async def main():
    sockets = Sockets(serve_config({"url": "tcp://127.0.0.1:0", "http": "off"}))
    for name, inner in (("push", sockets.push), ("query", sockets.query)):
        client = sockets.context.socket(zmq.DEALER)
        client.connect(sockets.addresses[name])
        await client.send(b"x")
        print((await inner.recv_multipart())[0].hex())
        client.close(linger=0)
    sockets.close(linger_ms=0)

asyncio.run(main())
"""


def test_routing_ids_cannot_be_foretold() -> None:
    """Who knows the next one can choose it as his own, and libzmq aborts the process when it gives it."""
    command = [sys.executable, "-c", ROUTING_IDS]
    daemons = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    routing_ids = []
    for daemon in daemons:
        routing_ids += daemon.communicate(timeout=60)[0].split()
        assert daemon.returncode == 0
    assert len(set(routing_ids)) == 4
    numbers = sorted(int(routing_id, 16) for routing_id in routing_ids)
    assert min(after - before for before, after in itertools.pairwise(numbers)) > 1, "one tells the others"
    assert "00e43c9869" not in routing_ids, "the first without a seed"
