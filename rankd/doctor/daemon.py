"""A running daemon, asked as its peers would ask it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import zmq

from rankd.doctor.capacity import check_capacity
from rankd.doctor.files import open_files_of
from rankd.doctor.finding import Finding, ok, problem
from rankd.doctor.plan import check_plan
from rankd.doctor.probe import Probe
from rankd.doctor.trainers import check_trainers
from rankd_client.endpoints import EndpointError, Endpoints, NotThereYet, check_owner, endpoints_of
from rankd_client.keys import Key, KeyFileError, find_key, needs_key
from rankd_client.wire import (
    DAEMON_RUN,
    Heartbeat,
    Query,
    Refusal,
    Reply,
    WireError,
    decode,
    decode_event,
    decode_reply,
    encode,
    encode_query,
    heartbeat_topic,
)

PATIENCE_SECONDS = 3.0
SLOW_SECONDS = 1.0
"""An answer comes from memory, in a millisecond; a daemon that takes so long is starved of its core."""

CLOCK_SECONDS = 5.0
BY_DESIGN = {
    "dropped_answers": "to clients that had left, or did not read",
    "dropped_late_shards": "parts that came after their layer was given up",
    "dropped_overtaken": "layers of which a process went on to a later step",
    "dropped_process_gone": "layers of which a process that left had the rest",
    "dropped_superseded": "snapshots that newer ones replaced",
}
"""What each counts."""
REACHABLE = "the daemon's URL: --url or RANKD_URL"


def check_daemon(url: str, key_file: Path | None) -> Iterator[Finding]:
    """Every socket of the daemon at `url`, and what it says of itself."""
    try:
        endpoints = endpoints_of(url)
        key = find_key(key_file, endpoints.query)
    except NotThereYet as error:
        yield problem(
            "addresses", str(error), "start a daemon with `rankd serve --discovery FILE`, or wait for the job"
        )
        return
    except EndpointError as error:
        yield problem("addresses", str(error), REACHABLE)
        return
    except KeyFileError as error:
        yield problem("key", str(error), "name a key file that only you can read: --key FILE or RANKD_KEY")
        return
    addresses = [check_address(name, getattr(endpoints, name)) for name in ("push", "alerts", "query")]
    yield from addresses
    if all(finding.ok for finding in addresses):
        yield from _check_sockets(endpoints, key)


def check_address(name: str, address: str) -> Finding:
    """What can be said of the address of push, alerts or query without connecting."""
    name = f"{name}_address"
    try:
        check_owner(address)
    except EndpointError as error:
        return problem(name, str(error), "weights must not go there: use a directory of your own")
    if address.startswith("ipc://") and not Path(address.removeprefix("ipc://")).is_socket():
        return problem(
            name, f"{address} does not exist", "start a daemon with `rankd serve`, or name another with --url"
        )
    if address.startswith("tcp://") and address.endswith(":0"):
        return problem(name, f"{address} names no port", REACHABLE)
    return ok(name, address)


def _check_sockets(endpoints: Endpoints, key: Key | None) -> Iterator[Finding]:
    finding, reply = _ask_state(endpoints.query, key)
    yield finding
    yield _ask_push(endpoints.push, key)
    yield from _hear_heartbeat(endpoints.alerts, key)
    if reply is not None:
        yield from _check_state(reply.body)


def _ask_state(address: str, key: Key | None) -> tuple[Finding, Reply | None]:
    with Probe(zmq.DEALER, address, key) as probe:
        frames, seconds = probe.ask(encode_query(Query("state", 1)), PATIENCE_SECONDS)
        if frames is None:
            return _silent("query", probe), None
    try:
        reply = decode_reply(frames)
    except WireError as error:
        return _foreign("query", address, error), None
    if reply.error:
        return problem(
            "query", f"{address} answers {reply.error}", "this key may not subscribe: `rankd keys list`"
        ), None
    return _answered("query", address, seconds), reply


def _ask_push(address: str, key: Key | None) -> Finding:
    """A heartbeat without a hello is answered with the refusal that asks for one: it leaves no trace of us."""
    with Probe(zmq.DEALER, address, key) as probe:
        frames, seconds = probe.ask([bytes(frame) for frame in encode(Heartbeat())], PATIENCE_SECONDS)
        if frames is None:
            return _silent("push", probe)
    try:
        answer = decode(frames)
    except WireError as error:
        return _foreign("push", address, error)
    if isinstance(answer, Refusal) and answer.code == "not_allowed":
        return ok("push", f"{address} answers; this key may not push")
    return _answered("push", address, seconds)


def _hear_heartbeat(address: str, key: Key | None) -> Iterator[Finding]:
    topic = heartbeat_topic(key.namespace if key is not None and needs_key(address) else "")
    with Probe(zmq.SUB, address, key, topic) as probe:
        frames = probe.hear(PATIENCE_SECONDS)
        if frames is None:
            yield _silent("alerts", probe)
            return
    try:
        body = decode_event(frames).body
    except WireError as error:
        yield _foreign("alerts", address, error)
        return
    yield ok("alerts", f"{address} sends heartbeats, state {body.get('state')!r}")
    yield _compare_clocks(body.get("time"))
    yield _check_drops(body.get("dropped"))


def _compare_clocks(told: Any) -> Finding:
    ahead = float(told) - time.time() if isinstance(told, int | float) else 0.0
    text = f"the daemon's clock is {abs(ahead):.1f} s {'ahead of' if ahead > 0 else 'behind'} this host's"
    if abs(ahead) <= CLOCK_SECONDS:
        return ok("daemon_clock", text)
    return problem("daemon_clock", text, "let NTP set both")


def _check_drops(dropped: Any) -> Finding:
    """Newest wins is by design, here and in the clients, and trainers that end, even before they are answered, are no
    fault of the daemon; anything else was lost."""
    counts = {name: n for name, n in dropped.items() if n} if isinstance(dropped, Mapping) else {}
    meanings = {name: f" ({meaning})" for name, meaning in BY_DESIGN.items()}
    text = ", ".join(f"{name}={n}{meanings.get(name, '')}" for name, n in sorted(counts.items()))
    text = text or "nothing was dropped"
    if counts.keys() <= BY_DESIGN.keys():
        return ok("drops", text)
    return problem("drops", text, "look at its log for when; what the counters mean stands in docs/operations.md")


def _check_state(state: Mapping[str, Any]) -> Iterator[Finding]:
    if isinstance(capacity := state.get("capacity"), Mapping):
        namespace = state.get("namespace")
        yield check_capacity(capacity, namespace if isinstance(namespace, str) else None)
    if "counters" not in state:
        yield ok("fault", "the daemon tells only admins of its faults; ask on its host, or with an admin's key")
        return
    alerts = state.get("alerts")
    rows = [row for row in alerts if isinstance(row, Mapping)] if isinstance(alerts, list | tuple) else []
    faults = [row for row in rows if row.get("run") == DAEMON_RUN]
    for fault in faults:
        name = str(fault.get("rule")).removeprefix("daemon_")
        yield problem("fault", f"{name}: {fault.get('message')}", str(fault.get("advice") or ""))
    if not faults:
        yield ok("fault", "the daemon reports none of its own")
    if isinstance(plan := state.get("plan"), Mapping):
        yield check_plan(plan)
    if "trainers" in state:
        yield from check_trainers(state["trainers"])


def _answered(check: str, address: str, seconds: float) -> Finding:
    text = f"{address} answers in {1000 * seconds:.1f} ms"
    if seconds < SLOW_SECONDS:
        return ok(check, text)
    return problem(check, text, "the daemon gets too little of its cores: look at the host's load")


def _silent(check: str, probe: Probe) -> Finding:
    why, advice = probe.silence()
    if (files := open_files_of(probe.address)) is not None and files.used_up:
        why = f"the daemon (process {files.pid}) has {files.num_open} of at most {files.limit} files open"
        advice = "raise its limit and start it again: `ulimit -n`, or LimitNOFILE= in the unit"
    return problem(check, f"{probe.address}: {why}", advice)


def _foreign(check: str, address: str, error: WireError) -> Finding:
    return problem(
        check, f"{address} answers, but not in this protocol ({error})", "another program or version is there"
    )
