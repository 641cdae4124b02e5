"""on_alert over real sockets: acknowledged by returning, again after anything else."""

from __future__ import annotations

from pathlib import Path

import pytest
from publisher import Publisher

import rankd_client
from rankd_client.stream import Item


class Killed(BaseException):
    pass


def test_an_alert_is_handed_over_until_the_sink_returns_over_restarts(publisher: Publisher, tmp_path: Path) -> None:
    calls: list[int] = []

    def sink(alert: Item) -> None:
        calls.append(alert.seq)
        if calls == [1, 2]:
            raise Killed

    def follow() -> None:
        rankd_client.on_alert(
            sink, timeout=2.0, alerts=publisher.alerts, query=publisher.query, since_last=tmp_path / "positions"
        )

    publisher.publish()
    publisher.publish()
    with pytest.raises(Killed):
        follow()
    publisher.publish()
    follow()
    assert calls == [1, 2, 2, 3]
    follow()
    assert calls == [1, 2, 2, 3]
