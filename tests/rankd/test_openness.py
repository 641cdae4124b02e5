import pytest

from rankd.openness import INSECURE_SECONDS, Openness

WARNING = "insecure: whoever reaches these addresses can push and listen"


def test_insecure_is_said_at_the_start_and_every_hour(caplog: pytest.LogCaptureFixture) -> None:
    openness = Openness(insecure=True, open_to_users=True, now=100.0)
    assert [record.message for record in caplog.records] == [WARNING]
    for now in (101.0, 99.0 + INSECURE_SECONDS):
        openness.look(now)
    assert len(caplog.records) == 1
    for hours in (1, 1.5, 2):
        openness.look(100.0 + hours * INSECURE_SECONDS)
    assert [record.message for record in caplog.records] == [WARNING] * 3


def test_loopback_without_keys_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    openness = Openness(insecure=False, open_to_users=True, now=0.0)
    openness.look(10 * INSECURE_SECONDS)
    (record,) = caplog.records
    assert "loopback TCP without keys" in record.message


def test_of_what_only_the_owner_or_keys_can_reach_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    Openness(insecure=False, open_to_users=False, now=0.0).look(10 * INSECURE_SECONDS)
    assert not caplog.records
