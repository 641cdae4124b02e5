from rankd.streams import Streams

ALERTS, ROWS = ("alert", "r"), ("measurement", "r")


def test_numbers_count_by_topic_from_one() -> None:
    streams = Streams("a" * 16)
    assert [streams.next_n(ALERTS), streams.next_n(ALERTS), streams.next_n(ROWS)] == [1, 2, 1]
    assert [streams.seq(ALERTS, 2), streams.newest_seq(ALERTS), streams.newest_seq(("alert", "other"))] == [2, 2, 0]
    assert list(streams.topics()) == [ROWS, ALERTS]


def test_a_history_goes_on_where_it_was() -> None:
    streams = Streams("a" * 16)
    streams.load(ROWS, newest=500, base=480)
    assert (streams.newest_seq(ROWS), streams.next_n(ROWS), streams.newest_seq(ROWS)) == (20, 501, 21)


def test_another_stream_begins_with_what_was_not_told() -> None:
    streams = Streams("a" * 16)
    streams.load(("measurement", "silent"), newest=7, base=0)
    for _ in range(10):
        streams.next_n(ROWS)
    streams.next_n(ALERTS)
    bases = streams.switch("b" * 16, untold=[ROWS, ROWS, ALERTS])
    assert streams.stream_id == "b" * 16
    assert bases == {ROWS: 8, ALERTS: 0, ("measurement", "silent"): 7}
    assert [streams.seq(ROWS, 9), streams.seq(ROWS, 10), streams.seq(ALERTS, 1)] == [1, 2, 1]
    assert streams.newest_seq(("measurement", "silent")) == 0
    assert set(streams.topics()) == {ROWS, ALERTS, ("measurement", "silent")}, "whose number is 0: it was missed or not"
    streams.next_n(("measurement", "silent"))
    assert streams.newest_seq(("measurement", "silent")) == 1
