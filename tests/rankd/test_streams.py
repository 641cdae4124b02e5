from rankd.streams import Streams

ALERTS, ROWS = ("alert", "r"), ("measurement", "r")


def test_numbers_count_by_topic_from_one() -> None:
    streams = Streams("a" * 16)
    assert [streams.next_n(ALERTS), streams.next_n(ALERTS), streams.next_n(ROWS)] == [1, 2, 1]
    assert streams.seq(ALERTS, 2) == 2


def test_a_number_that_was_given_and_not_told_is_nobodys_business() -> None:
    streams = Streams("a" * 16)
    streams.next_n(ALERTS)
    assert streams.newest_seq(ALERTS) == 0 and list(streams.topics()) == []
    streams.tell(ALERTS, 1)
    streams.next_n(ALERTS)
    assert streams.newest_seq(ALERTS) == 1 and list(streams.topics()) == [ALERTS]
    assert streams.newest_seq(("alert", "other")) == 0


def test_a_history_goes_on_where_it_was() -> None:
    streams = Streams("a" * 16)
    streams.load(ROWS, newest=500, base=480)
    assert (streams.newest_seq(ROWS), streams.next_n(ROWS), streams.newest_seq(ROWS)) == (20, 501, 20)
    streams.tell(ROWS, 501)
    assert streams.newest_seq(ROWS) == 21


def test_another_stream_begins_with_what_was_not_told() -> None:
    streams = Streams("a" * 16)
    silent = ("measurement", "silent")
    streams.load(silent, newest=7, base=0)
    for _ in range(10):
        streams.next_n(ROWS)
    streams.tell(ROWS, 8)
    streams.next_n(ALERTS)
    assert streams.switch("b" * 16) == {ROWS: 8, silent: 7}
    assert streams.stream_id == "b" * 16
    assert [streams.seq(ROWS, 9), streams.seq(ROWS, 10), streams.seq(ALERTS, 1)] == [1, 2, 1]
    assert [streams.newest_seq(topic) for topic in (ROWS, ALERTS, silent)] == [0, 0, 0]
    streams.tell(ROWS, 9)
    assert streams.newest_seq(ROWS) == 1
    assert set(streams.topics()) == {ROWS, silent}, "also those that have numbers in a former stream alone"
