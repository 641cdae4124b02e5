"""Subscriptions that go on where the last one ended, and those with a key, over real sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from publisher import OTHER, TIMEOUT, Publisher, follow, seqs

from rankd_client.subscriber import SubscriptionError, asubscribe, subscribe


def test_a_subscriber_that_starts_again_gets_what_came_meanwhile_once(publisher: Publisher, tmp_path: Path) -> None:
    file = tmp_path / "positions.json"
    publisher.publish()
    with follow(publisher, since_last=file) as subscription:
        assert next(subscription).seq == 1
        publisher.publish()
        assert next(subscription).seq == 2
        publisher.publish()
        assert next(subscription).seq == 3
        subscription.acknowledge()
    publisher.publish()
    publisher.publish(state="resolved")
    with follow(publisher, since_last=file) as subscription:
        assert seqs(subscription, 2) == [4, 5]
    with follow(publisher, since_last=file) as subscription:
        assert next(subscription).seq == 5  # it was given out, but nobody said that it was dealt with
        publisher.publish()
        assert next(subscription).seq == 6


def test_what_came_before_the_first_alert_is_not_missed(publisher: Publisher, tmp_path: Path) -> None:
    with follow(publisher, timeout=0.5, since_last=tmp_path / "positions") as subscription:
        assert list(subscription) == []
    publisher.publish()
    with follow(publisher, since_last=tmp_path / "positions") as subscription:
        assert next(subscription).seq == 1


def test_a_subscriber_that_is_killed_goes_on_with_what_it_had_not_asked_beyond(
    publisher: Publisher, tmp_path: Path
) -> None:
    killed = follow(publisher, since_last=tmp_path / "positions")
    for seq in (1, 2, 3):
        publisher.publish()
        assert next(killed).seq == seq
    written = (tmp_path / "positions").read_text()
    killed.close()
    (tmp_path / "positions").write_text(written)  # as a kill would have left it
    with follow(publisher, since_last=tmp_path / "positions") as subscription:
        assert next(subscription).seq == 3


def test_two_subscribers_of_one_file_and_a_damaged_file_are_refused(publisher: Publisher, tmp_path: Path) -> None:
    file = tmp_path / "positions"
    with follow(publisher, since_last=file), pytest.raises(ValueError, match="another subscriber"):
        follow(publisher, since_last=file)
    file.write_text("{")
    for function in (subscribe, asubscribe):
        with pytest.raises((ValueError, RuntimeError), match=r"positions' is damaged|no running event loop"):
            function(alerts=publisher.alerts, query=publisher.query, since_last=file)


def test_a_file_that_is_no_path_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="since_last=7; expected the path"):
        subscribe(f"ipc://{tmp_path}", since_last=7)  # type: ignore[arg-type]


async def test_async_goes_on_over_another_stream(publishers: Callable[..., Publisher], tmp_path: Path) -> None:
    old = publishers()
    old.publish()
    options: dict[str, Any] = {"timeout": TIMEOUT, "since_last": tmp_path / "positions"}
    async with asubscribe(alerts=old.alerts, query=old.query, **options) as items:
        assert (await anext(items)).seq == 1
        items.acknowledge()
    old.close()
    new = publishers(old.alerts, old.query, stream_id=OTHER)
    new.publish()
    async with asubscribe(alerts=new.alerts, query=new.query, **options) as items:
        assert [(await anext(items)).stream_id] == [OTHER]
    topics = {s["stream_id"]: s["topics"] for s in json.loads((tmp_path / "positions").read_text())["streams"]}
    assert topics[OTHER] == [["alert", "r", 0]]  # given out, not dealt with


# --- who may


def test_a_daemon_that_refuses_is_an_error_and_no_long_wait(publisher: Publisher) -> None:
    publisher.error = "not_allowed"
    subscription = follow(publisher, run="@team-a/lm")
    with pytest.raises(SubscriptionError, match=r"not_allowed: no key, run '@team-a/lm'; expected a key"):
        next(subscription)
    assert subscription.closed and isinstance(SubscriptionError(), PermissionError)


async def test_async_refusal(publisher: Publisher) -> None:
    publisher.error = "not_allowed"
    items = asubscribe(alerts=publisher.alerts, query=publisher.query, timeout=TIMEOUT)
    with pytest.raises(SubscriptionError):
        await anext(items)
    assert items.closed


def test_runs_of_namespaces_are_followed_by_their_full_names(publisher: Publisher) -> None:
    with follow(publisher, run="@team-a/lm") as one, follow(publisher) as everybody:
        publisher.publish(run="lm")
        assert next(everybody).run == "lm"
        publisher.publish(run="@team-a/lm")
        assert next(everybody).run == next(one).run == "@team-a/lm"


@pytest.mark.parametrize("run", ["@", "@team-a", "@team-a/", "@Team/lm", "@daemon/lm", "@a/@b"])
def test_malformed_full_names_are_refused(run: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="bad_name"):
        subscribe(f"ipc://{tmp_path}", run)
