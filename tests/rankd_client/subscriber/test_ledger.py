"""What is written down while items are dealt with one by one, whatever the moment at which it ends."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
from simulated_daemon import OTHER, STREAM, Daemon, drain, settle

from rankd_client.stream import Item, StreamTracker
from rankd_client.stream.filters import Wanted
from rankd_client.subscriber.ledger import Ledger

WANTED = {"run": None, "layers": None, "streams": ["alert"]}


class Life:
    """A tracker and its ledger, from its start on."""

    def __init__(self, daemon: Daemon, path: Path, severity: str | None = None) -> None:
        self.tracker = StreamTracker(Wanted(severity=severity))
        self.ledger = Ledger(path, WANTED | ({"severity": severity} if severity else {}), self.tracker)
        self.items: list[Item] = settle(daemon, self.tracker, self.tracker.start())
        self.ledger.refresh(self.items)

    def hear(self, daemon: Daemon) -> None:
        self.items += drain(daemon, self.tracker, [], [])

    def settle(self) -> str:
        item = self.items.pop(0)
        self.ledger.settle(item, write=True)
        return str(item.alert_id)


def test_every_alert_is_dealt_with_once_wherever_a_life_ends(tmp_path: Path) -> None:
    daemon = Daemon(tell_streams=True)
    for name in ("fires", "fires too"):
        daemon.publish(alert_id=name)
    dealt_with: list[str] = []
    for turn in range(12):
        life = Life(daemon, tmp_path / "positions")
        daemon.publish(alert_id=f"{turn} live")
        if turn % 3 == 1:
            daemon.detach(f"{turn:016x}")
            daemon.recover()
        daemon.publish(alert_id=f"{turn} later", run="another")
        if turn % 2:
            life.hear(daemon)
        if turn % 4 == 3:
            life.ledger.refresh(life.items)
        dealt_with += [life.settle() for _ in range(min(2, len(life.items)))]
        life.ledger.close()
    life = Life(daemon, tmp_path / "positions")
    dealt_with += [life.settle() for _ in range(len(life.items))]
    life.ledger.close()
    expected = ["fires", "fires too", *(f"{turn} {what}" for turn in range(12) for what in ("live", "later"))]
    assert sorted(dealt_with) == sorted(expected)


def test_what_is_filtered_out_moves_the_place_on(tmp_path: Path) -> None:
    daemon = Daemon()
    life = Life(daemon, tmp_path / "positions")
    life.tracker.on_event(daemon.publish(layer="a"))
    life.ledger.refresh(())
    life.ledger.close()
    assert Life(daemon, tmp_path / "positions").items == []


def test_an_item_that_is_not_dealt_with_holds_its_topic_back_in_later_streams_too(tmp_path: Path) -> None:
    daemon = Daemon(tell_streams=True)
    life = Life(daemon, tmp_path / "positions")
    daemon.publish(alert_id="first")
    daemon.detach(OTHER)
    daemon.recover()
    daemon.publish(alert_id="second")
    life.hear(daemon)
    life.ledger.refresh(life.items)
    life.ledger.close()
    following = Life(daemon, tmp_path / "positions")
    assert [(item.alert_id, item.stream_id) for item in following.items] == [("first", STREAM), ("second", OTHER)]


def test_an_item_of_a_lost_stream_costs_no_place_in_the_one_that_came_back(tmp_path: Path) -> None:
    """The daemon died while its history could not be written, and a slow sink still has what it told meanwhile."""
    daemon = Daemon(tell_streams=True)
    life = Life(daemon, tmp_path / "positions")
    for number in range(5):
        daemon.publish(alert_id=f"{number}")
    life.hear(daemon)
    assert [life.settle() for _ in range(5)] == ["0", "1", "2", "3", "4"]
    daemon.detach(OTHER)
    daemon.publish(alert_id="lost")
    life.hear(daemon)
    daemon.crash()
    daemon.publish(alert_id="5")
    life.hear(daemon)
    assert [item.alert_id for item in life.items] == ["lost", "5"]
    life.ledger.refresh(life.items)
    life.ledger.close()
    following = Life(daemon, tmp_path / "positions")
    assert [(item.alert_id, item.seq) for item in following.items] == [("5", 6)]


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    daemon = Daemon()
    life = Life(daemon, tmp_path / "positions")
    (tmp_path / "positions.new").mkdir()
    with caplog.at_level(logging.WARNING, "rankd_client"):
        for _ in range(3):
            daemon.publish()
            life.hear(daemon)
            life.settle()
    assert ["cannot write" in record.getMessage() for record in caplog.records] == [True]
    (tmp_path / "positions.new").rmdir()
    life.ledger.refresh(())
    life.ledger.close()
    assert Life(daemon, tmp_path / "positions").items == []


def test_the_end_of_an_alert_that_was_shown_is_shown_however_mild_and_wherever_a_life_ends(tmp_path: Path) -> None:
    daemon, path = Daemon(), tmp_path / "positions"
    for name, severity in (("hidden", "warning"), ("shown", "critical")):
        daemon.publish(alert_id=name, severity=severity)
    life = Life(daemon, path, severity="critical")
    assert [item.alert_id for item in life.items] == ["shown"]
    life.settle()
    life.ledger.close()
    for name in ("hidden", "shown"):
        daemon.publish(alert_id=name, severity="info", state="resolved")
    for _ in range(2):  # the first of these lives ends with the end in hand
        life.ledger.close()
        life = Life(daemon, path, severity="critical")
        assert [(item.alert_id, item.state) for item in life.items] == [("shown", "resolved")]
        life.ledger.refresh(life.items)
    life.settle()
    life.ledger.close()
    daemon.publish(alert_id="shown", severity="info", state="resolved")  # of nothing that is known to fire
    life = Life(daemon, path, severity="critical")
    assert life.items == []
    life.ledger.close()
