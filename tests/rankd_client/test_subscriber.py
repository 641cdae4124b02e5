"""Subscriptions over real sockets, against a small publisher that numbers, keeps and answers as a daemon does."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from rankd_client.endpoints import EndpointError
from rankd_client.subscriber import Gap, Item, Subscription, asubscribe, subscribe
from rankd_client.wire import Event, Query, Reply, decode_query, encode_event, encode_reply

STREAM, OTHER = "00000000000000aa", "00000000000000bb"
TIMEOUT = 30.0
"""Seconds after which a test that hangs fails; no test takes that long when it passes."""


class Publisher:
    """XPUB and ROUTER in a thread of their own. A heartbeat every 20 ms, so that no test waits for one."""

    def __init__(
        self, alerts: str, query: str, stream_id: str = STREAM, events: list[Event] | None = None, hwm: int = 1000
    ) -> None:
        self.stream_id, self.events = stream_id, events if events is not None else []
        self._commands: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._context = zmq.Context()
        self._xpub, self._router = self._context.socket(zmq.XPUB), self._context.socket(zmq.ROUTER)
        for socket, address in ((self._xpub, alerts), (self._router, query)):
            socket.set(zmq.LINGER, 0)
            socket.set(zmq.SNDHWM, hwm)
            socket.bind(address)
        self.alerts, self.query = self._xpub.last_endpoint.decode(), self._router.last_endpoint.decode()
        self._heartbeats = self.num_forgotten = 0
        self._told = len(self.events)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        poller = zmq.Poller()
        poller.register(self._router, zmq.POLLIN)
        poller.register(self._xpub, zmq.POLLIN)  # subscriptions take effect when they are read
        while True:
            for socket, _ in poller.poll(20):
                frames = socket.recv_multipart()
                if socket is self._router:
                    self._router.send_multipart([frames[0], *encode_reply(self._answer(decode_query(frames[1:])))])
            while not self._commands.empty():
                if (command := self._commands.get()) is None:
                    return
                command()
            self._heartbeat()

    def _heartbeat(self) -> None:
        self._heartbeats += 1
        numbers = {(event.kind, event.run): event.seq for event in self.events[self._told :]}
        self._told = len(self.events)
        body = {"numbers": [[*key, seq] for key, seq in numbers.items()], "dropped": {"dropped_events": 0}}
        self._xpub.send_multipart(encode_event(Event("heartbeat", "", self.stream_id, self._heartbeats, body)))

    def _answer(self, query: Query) -> Reply:
        if query.verb == "state":
            numbers = {(event.kind, event.run): event.seq for event in self.events}
            alerts = {event.body["alert_id"]: event.body for event in self.events if event.kind == "alert"}
            firing = [alert for alert in alerts.values() if alert["state"] == "firing"]
            return Reply(
                query.query_id,
                self.stream_id,
                {"numbers": [[*key, seq] for key, seq in numbers.items()], "alerts": firing, "truncated": False},
            )
        own = [event for event in self.events if (event.kind, event.run) == (query.kind, query.run)]
        events = tuple(event for event in own[self.num_forgotten :] if event.seq >= query.from_seq)[:1000]
        return Reply(query.query_id, self.stream_id, {"first": self.num_forgotten + 1, "last": len(own)}, events)

    def forget(self) -> None:
        """Keep none of the measurements so far."""
        self.num_forgotten = sum(event.kind == "measurement" for event in self.events)

    def call(self, command: Callable[[], None]) -> None:
        """Run it in the publisher's thread and wait until it is done."""
        done = threading.Event()
        self._commands.put(lambda: (command(), done.set())[0])
        assert done.wait(TIMEOUT)

    def publish(self, run: str = "r", kind: str = "alert", lost: bool = False, **body: Any) -> None:
        self.call(lambda: self._publish(run, kind, lost, body))

    def _publish(self, run: str, kind: str, lost: bool, body: dict[str, Any]) -> None:
        seq = 1 + sum((event.kind, event.run) == (kind, run) for event in self.events)
        common = {"alert_id": f"{self.stream_id}-{run}-{seq}", "state": "firing", "layer": "a", "run": run}
        body = {**common, "stream_id": self.stream_id, "seq": seq, **body}
        self.events.append(Event(kind, run, self.stream_id, seq, body))
        if not lost:
            self._xpub.send_multipart(encode_event(self.events[-1]))

    def send(self, *frames: bytes) -> None:
        self.call(lambda: self._xpub.send_multipart(list(frames)))

    def close(self) -> None:
        if self._thread.is_alive():
            self._commands.put(None)
            self._thread.join(TIMEOUT)
            self._context.destroy(linger=0)


@pytest.fixture
def publishers() -> Iterator[Callable[..., Publisher]]:
    made: list[Publisher] = []

    def make(alerts: str = "tcp://127.0.0.1:*", query: str = "tcp://127.0.0.1:*", **options: Any) -> Publisher:
        made.append(Publisher(alerts, query, **options))
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()


@pytest.fixture
def publisher(publishers: Callable[..., Publisher]) -> Publisher:
    return publishers()


def follow(publisher: Publisher, timeout: float | None = TIMEOUT, **options: Any) -> Subscription:
    return subscribe(alerts=publisher.alerts, query=publisher.query, timeout=timeout, **options)


def joined(publisher: Publisher, **options: Any) -> Subscription:
    """Both streams, followed from behind a first alert on."""
    publisher.publish(layer="b")
    subscription = follow(publisher, streams=("alert", "measurement"), **options)
    assert next(subscription).seq == 1
    return subscription


def seqs(items: Any, count: int) -> list[int]:
    return [item.seq for item in itertools.islice(items, count)]


def test_alerts_arrive_as_items(publisher: Publisher) -> None:
    with follow(publisher) as subscription:
        publisher.publish(message="fell")
        alert = next(subscription)
    assert isinstance(alert, Item) and (alert.stream, alert.run, alert["message"]) == ("alert", "r", "fell")
    assert subscription.stream_id == STREAM and subscription.gaps == [] and subscription.num_malformed == 0
    assert subscription.dropped == {} or subscription.dropped == {"dropped_events": 0}


def test_by_url_over_ipc(publishers: Callable[..., Publisher], tmp_path: Path) -> None:
    publisher = publishers(f"ipc://{tmp_path}/alerts.sock", f"ipc://{tmp_path}/query.sock")
    with subscribe(f"ipc://{tmp_path}", timeout=TIMEOUT) as subscription:
        publisher.publish()
        assert next(subscription).seq == 1


def test_late_joiner_gets_what_fires_then_what_comes(publisher: Publisher) -> None:
    publisher.publish()
    publisher.publish(state="resolved")
    with follow(publisher) as subscription:
        assert next(subscription).seq == 1
        publisher.publish()
        assert next(subscription).seq == 3


def test_measurements_runs_and_layers_are_filtered(publisher: Publisher) -> None:
    with joined(publisher, run="r", layers=("b*",)) as subscription:
        publisher.publish(kind="measurement", run="rr", layer="b")
        publisher.publish(kind="measurement", layer="a")
        publisher.publish(kind="measurement", layer="b.0")
        publisher.publish(kind="measurement", layer="b.1")
        items = [next(subscription), next(subscription)]
    assert [(item.stream, item.run, item.layer) for item in items] == [
        ("measurement", "r", "b.0"),
        ("measurement", "r", "b.1"),
    ]


def test_lost_events_are_fetched_in_order(publisher: Publisher) -> None:
    publisher.publish()
    with follow(publisher) as subscription:
        assert next(subscription).seq == 1
        publisher.publish(lost=True)
        publisher.publish(lost=True)
        publisher.publish()
        assert seqs(subscription, 3) == [2, 3, 4]
        publisher.publish(lost=True)
        assert next(subscription).seq == 5


def test_events_that_are_gone_are_a_gap_and_one_log_line(
    publisher: Publisher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "rankd_client"), joined(publisher) as subscription:
        for _ in range(3):
            publisher.publish(kind="measurement", lost=True)
        publisher.call(publisher.forget)
        publisher.publish(kind="measurement")
        assert next(subscription).seq == 4
    assert subscription.gaps == [Gap(STREAM, "measurement", "r", 1, 3)]
    (record,) = caplog.records
    assert record.getMessage().startswith(f"missed 3 events that the daemon at {publisher.alerts} no longer has")


def test_time_without_an_item_ends_it_though_heartbeats_come(publisher: Publisher) -> None:
    publisher.publish()
    subscription = follow(publisher, timeout=2.0)
    assert [item.seq for item in subscription] == [1]
    assert subscription.closed and list(subscription) == []


def test_time_out_without_a_daemon(tmp_path: Path) -> None:
    assert list(subscribe(f"ipc://{tmp_path}", timeout=0.05)) == []
    assert list(subscribe(f"ipc://{tmp_path}", timeout=0)) == []


def test_waits_for_a_daemon_that_is_not_there_yet(publishers: Callable[..., Publisher], tmp_path: Path) -> None:
    alerts, query = f"ipc://{tmp_path}/alerts.sock", f"ipc://{tmp_path}/query.sock"
    with subscribe(alerts=alerts, query=query, timeout=TIMEOUT) as subscription:
        publishers(alerts, query).publish()
        assert next(subscription).seq == 1


def test_absent_daemon_is_one_log_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    now = iter(float(second) for second in range(10_000))
    with subscribe(f"ipc://{tmp_path}") as subscription, caplog.at_level(logging.WARNING, "rankd_client"):
        subscription._sockets._clock = lambda: next(now)
        subscription._sockets._ticked_at = -1.0
        for _ in range(20):
            subscription._sockets.handle([])
    assert [record.getMessage() for record in caplog.records] == [
        f"no daemon is heard at ipc://{tmp_path}/alerts.sock; waiting for it"
    ]


@pytest.mark.parametrize("stream_id", [STREAM, OTHER])
def test_goes_on_when_the_daemon_restarts(publishers: Callable[..., Publisher], stream_id: str) -> None:
    """With its history (the numbers go on) and without (a new stream)."""
    old = publishers()
    old.publish()
    with follow(old) as subscription:
        assert next(subscription).seq == 1
        old.close()
        kept = old.events if stream_id == STREAM else []
        new = publishers(old.alerts, old.query, stream_id=stream_id, events=kept)
        new.publish()
        new.publish()
        assert seqs(subscription, 2) == ([2, 3] if stream_id == STREAM else [1, 2])
        assert subscription.stream_id == stream_id and subscription.gaps == []


def test_stuck_subscriber_holds_up_nobody_and_misses_nothing(publishers: Callable[..., Publisher]) -> None:
    publisher = publishers(hwm=10)

    def flood() -> None:
        for _ in range(2000):
            publisher._publish("r", "measurement", False, {"filler": "x" * 5000})

    with joined(publisher) as stuck, follow(publisher) as lively:
        assert next(lively).seq == 1
        publisher.call(flood)
        publisher.publish()
        assert next(lively).seq == 2  # while the other one has not been read
        items = list(itertools.islice(stuck, 2001))
    assert [item.seq for item in items if item.stream == "measurement"] == list(range(1, 2001))
    assert stuck.gaps == []


def test_garbage_is_counted_and_followed_past(publisher: Publisher) -> None:
    publisher.publish()
    with follow(publisher) as subscription:
        assert next(subscription).seq == 1
        publisher.send(b"alert\0r\0")
        publisher.send(b"alert\0r\0", b"short", b"\x80")
        publisher.send(b"alert\0r\0", bytes(16), b"\xc1")
        publisher.send(b"alert\0r\0x", bytes(16), b"\x80", b"")
        publisher.publish()
        assert next(subscription).seq == 2
        assert subscription.num_malformed == 4


def test_vanished_hosts_are_noticed_by_tcp_and_not_by_heartbeats_that_abort_the_process(publisher: Publisher) -> None:
    with joined(publisher) as items:
        for socket in (items._sockets.events, items._sockets.queries):
            assert socket.get(zmq.HEARTBEAT_IVL) == 0 and socket.get(zmq.TCP_KEEPALIVE) == 1


def test_abandoned_subscription_closes_its_sockets(publisher: Publisher) -> None:
    subscription = follow(publisher)
    context = subscription._sockets.context
    del subscription
    gc.collect()
    assert context.closed


def test_close_ends_the_iteration_and_may_be_repeated(publisher: Publisher) -> None:
    subscription = follow(publisher)
    subscription.close()
    subscription.close()
    assert list(subscription) == []


# --- asyncio


async def test_async_items_and_time_out(publisher: Publisher) -> None:
    publisher.publish()
    alerts = asubscribe(alerts=publisher.alerts, query=publisher.query, timeout=2.0)
    assert [(item.stream, item.seq) async for item in alerts] == [("alert", 1)]
    assert alerts.closed


async def test_async_goes_on_when_the_daemon_restarts(publishers: Callable[..., Publisher]) -> None:
    old = publishers()
    old.publish()
    async with asubscribe(alerts=old.alerts, query=old.query, timeout=TIMEOUT) as alerts:
        assert (await anext(alerts)).seq == 1
        await asyncio.to_thread(old.close)
        new = await asyncio.to_thread(publishers, old.alerts, old.query, stream_id=OTHER)
        new.publish(lost=True)
        new.publish()
        assert [(await anext(alerts)).seq, (await anext(alerts)).seq] == [1, 2]
    assert alerts.closed


async def test_cancelling_closes_the_sockets(tmp_path: Path) -> None:
    alerts = asubscribe(f"ipc://{tmp_path}")
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(anext(alerts), 0.05)
    assert alerts.closed and alerts._sockets.context.closed
    assert [item async for item in alerts] == []


async def test_others_run_while_one_waits(publisher: Publisher) -> None:
    async def soon() -> None:
        await asyncio.sleep(0)
        publisher.publish()

    async with asubscribe(alerts=publisher.alerts, query=publisher.query, timeout=TIMEOUT) as alerts:
        item, _ = await asyncio.gather(anext(alerts), soon())
    assert item.seq == 1


def test_asubscribe_needs_a_running_loop(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="no running event loop"):
        asubscribe(f"ipc://{tmp_path}")


# --- arguments


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


# --- as a process


def script(code: str, tmp_path: Path) -> subprocess.Popen[str]:
    prelude = f"import rankd_client.subscriber as s, sys\nurl = 'ipc://{tmp_path}'\n"
    # Where the tests run in the background, an ignored SIGINT is inherited.
    prelude += "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    command = [sys.executable, "-W", "error", "-c", prelude + code]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_subscribing_needs_no_torch(tmp_path: Path) -> None:
    code = "sys.modules['torch'] = sys.modules['numpy'] = None\nprint(list(s.subscribe(url, timeout=0)))"
    process = script(code, tmp_path)
    assert process.communicate(timeout=TIMEOUT) == ("[]\n", "")


def test_open_subscription_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    process = script("kept = s.subscribe(url)\nprint('end')", tmp_path)
    assert process.communicate(timeout=TIMEOUT) == ("end\n", "")
    assert process.returncode == 0


def test_ctrl_c_interrupts_the_wait(tmp_path: Path) -> None:
    code = "try:\n    with s.subscribe(url) as kept:\n        print('waiting', flush=True)\n        next(kept)\n"
    process = script(code + "except KeyboardInterrupt:\n    print('interrupted')", tmp_path)
    assert process.stdout is not None and process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=TIMEOUT) == ("interrupted\n", "")
