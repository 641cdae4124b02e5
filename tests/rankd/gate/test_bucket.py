from rankd.gate.bucket import Bucket


def test_some_go_at_once_and_then_so_many_a_second() -> None:
    bucket = Bucket(rate_per_second=2, size=3)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert [bucket.take(10.5), bucket.take(10.5)] == [True, False]
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
