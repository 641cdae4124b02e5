"""What a subscriber is given, and what it is not."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
from simulated_daemon import Daemon, joined, seqs, settle

from rankd_client.stream import Item, Outcome
from rankd_client.stream.filters import Wanted


def test_item_is_a_map_whose_keys_are_attributes() -> None:
    item = Item({"layer": "a", "stream": "a key of the daemon's"}, "alert")
    assert item.layer == item["layer"] == "a"
    assert item.stream == "alert" and item["stream"] == "a key of the daemon's"
    assert dict(item) == {"layer": "a", "stream": "a key of the daemon's"}
    with pytest.raises(AttributeError, match="no key 'absent'"):
        _ = item.absent


@pytest.mark.parametrize("again", [copy.copy, copy.deepcopy, lambda item: pickle.loads(pickle.dumps(item))])
def test_item_survives_copies(again: Any) -> None:
    item = again(Item({"layer": "a"}, "measurement"))
    assert item == {"layer": "a"} and item.stream == "measurement"


def test_other_runs_and_kinds_are_not_followed() -> None:
    daemon = Daemon()
    daemon.publish(run="other")
    subscriber = joined(daemon, run="lm")
    daemon.publish(run="other")
    daemon.publish(run="lm", kind="measurement")
    assert settle(daemon, subscriber, subscriber.on_event(daemon.heartbeat())) == []
    assert subscriber.on_event(daemon.publish(run="other")) == Outcome()


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ({"layer": "h.0.mlp.up"}, True),
        ({"layer": "h.0.attn"}, False),
        ({"layer": None}, True),
        ({}, True),
        ({"layer": None, "layers": ["h.0.attn", "h.1.mlp.up"]}, True),
        ({"layer": None, "layers": ["h.0.attn"]}, False),
        ({"layer": 7}, False),
        ({"layer": ["h.0.mlp.up"]}, False),
        ({"layer": None, "layers": 7}, False),
        ({"layer": "h.0.mlp." + "u" * 2000}, False),
    ],
)
def test_layers_are_globs_and_whole_runs_concern_all(body: dict[str, Any], wanted: bool) -> None:
    assert Wanted(layers=("*.mlp.*",)).layer(body) is wanted
    assert Wanted().layer(body)


def test_layer_not_wanted_leaves_no_hole() -> None:
    daemon = Daemon()
    subscriber = joined(daemon, layers=("b*",))
    assert subscriber.on_event(daemon.publish(layer="a")) == Outcome()
    assert seqs(subscriber.on_event(daemon.publish(layer="b")).items) == [2]
