import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.auth import OWNER, Grant
from rankd_client.wire import WireError, heartbeat_topic, prefix_of, split_run, topic_of
from rankd_client.wire.names import is_namespace

NAMESPACES = st.one_of(
    st.just(""), st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=64).filter(is_namespace)
)
RUNS = st.text(min_size=1, max_size=60).filter(lambda run: "\0" not in run and run[0] != "@" and run.isprintable())
RIGHTS = st.sets(st.sampled_from(["push", "subscribe"]), min_size=1).map(frozenset)
KINDS = st.sampled_from(["alert", "measurement"])


def grant(namespace: str = "team", *rights: str) -> Grant:
    return Grant("alice", "k" * 40, namespace, frozenset(rights or ("push", "subscribe")))


def test_a_plain_name_is_in_the_namespace_of_the_key() -> None:
    assert grant("team").full_run("lm-42") == "@team/lm-42"
    assert grant("").full_run("lm-42") == "lm-42"
    assert OWNER.full_run("lm-42") == "lm-42"


def test_a_full_name_passes_in_its_own_namespace_and_for_an_admin() -> None:
    assert grant("team").full_run("@team/lm-42") == "@team/lm-42"
    assert grant("", "admin").full_run("@team/lm-42") == "@team/lm-42"
    assert OWNER.full_run("@daemon") == "@daemon"


@pytest.mark.parametrize(
    ("namespace", "run", "code"),
    [
        ("team", "@other/lm-42", "not_allowed"),
        ("", "@team/lm-42", "not_allowed"),
        ("team", "@daemon", "not_allowed"),
        ("team", "@lm", "bad_name"),
        ("team", "@/lm", "bad_name"),
        ("team", "@team/", "bad_name"),
        ("team", "@team/@other/lm", "bad_name"),
        ("team", "@daemon/lm", "bad_name"),
        ("team", "@TEAM/lm", "bad_name"),
        ("team", "", "bad_name"),
        ("", "a\0b", "bad_name"),
    ],
)
def test_other_names_are_refused(namespace: str, run: str, code: str) -> None:
    with pytest.raises(WireError) as caught:
        grant(namespace).full_run(run)
    assert caught.value.code == code


def test_to_push_takes_the_right_and_nobody_pushes_as_the_daemon() -> None:
    assert grant("team", "push").pushed_run("lm") == "@team/lm"
    for holder, run, code in (
        (grant("team", "subscribe"), "lm", "not_allowed"),
        (OWNER, "@daemon", "bad_name"),
        (OWNER, "@x", "bad_name"),
    ):
        with pytest.raises(WireError) as caught:
            holder.pushed_run(run)
        assert caught.value.code == code


def test_rights() -> None:
    assert grant("a", "push").may("push") and not grant("a", "push").may("subscribe")
    assert not grant("a", "push", "subscribe").may("admin")
    assert all(grant("a", "admin").may(right) for right in ("push", "subscribe", "admin"))


def test_reading_takes_the_right() -> None:
    assert grant("team").covers("@team/lm") and not grant("team", "push").covers("@team/lm")
    assert grant("team").covers_topic(b"alert@team\0") and not grant("team", "push").covers_topic(b"alert@team\0")


@pytest.mark.parametrize("prefix", [b"", b"a", b"alert", b"alert@", b"alert@team", b"alert\0", b"\0", b"heartbeat"])
def test_a_prefix_shorter_than_its_namespace_is_for_admins(prefix: bytes) -> None:
    assert not grant("team").covers_topic(prefix)
    assert grant("", "admin").covers_topic(prefix) and OWNER.covers_topic(prefix)


def test_its_own_topics() -> None:
    holder = grant("team")
    for prefix in (b"alert@team\0", b"alert@team\0lm\0", b"alert@team\0l", b"measurement@team\0", b"heartbeat@team\0"):
        assert holder.covers_topic(prefix)
    for prefix in (b"alert\0", b"heartbeat\0"):
        assert grant("").covers_topic(prefix) and not holder.covers_topic(prefix)


@given(NAMESPACES, NAMESPACES, RIGHTS, KINDS, RUNS, st.data())
def test_no_prefix_reaches_into_another_namespace(
    own: str, other: str, rights: frozenset[str], kind: str, run: str, data: st.DataObject
) -> None:
    """Whatever prefix of another namespace's topics one asks for is not covered."""
    if own == other:
        return
    topic = topic_of(kind, f"@{other}/{run}" if other else run)
    prefix = topic[: data.draw(st.integers(0, len(topic)))]
    assert not Grant("a", "k" * 40, own, rights).covers_topic(prefix)
    assert not Grant("a", "k" * 40, own, rights).covers_topic(heartbeat_topic(other))


@given(NAMESPACES, st.binary(max_size=40), KINDS)
def test_a_covered_prefix_matches_only_topics_of_its_namespace(own: str, tail: bytes, kind: str) -> None:
    holder = Grant("a", "k" * 40, own)
    for prefix in (tail, prefix_of(kind, own) + tail, prefix_of(kind, own)[:-1] + tail):
        if holder.covers_topic(prefix):
            assert prefix.startswith(tuple(prefix_of(k, own) for k in ("alert", "measurement", "heartbeat")))


@given(NAMESPACES, RUNS, KINDS)
def test_a_run_is_covered_where_its_topic_is(namespace: str, run: str, kind: str) -> None:
    for holder in (Grant("a", "k" * 40, namespace), Grant("b", "k" * 40, "zz"), Grant("c", "k" * 40, "")):
        full = Grant("x", "k" * 40, namespace).full_run(run)
        assert holder.covers(full) == holder.covers_topic(topic_of(kind, full))
        assert split_run(full) == (namespace, run)


@given(NAMESPACES, st.text(max_size=300))
def test_any_name_gives_a_run_of_the_namespace_or_an_error(namespace: str, run: str) -> None:
    try:
        full = Grant("a", "k" * 40, namespace).full_run(run)
    except WireError:
        return
    assert split_run(full)[0] == namespace


def test_a_user_id_is_of_name_and_key() -> None:
    ids = {Grant(name, key * 40).user_id for name in ("alice", "bob") for key in "ab"}
    assert len(ids) == 4
    assert Grant("alice", "a" * 40, "x").user_id == Grant("alice", "a" * 40, "y").user_id
