import numpy as np

from rankd.lines import Line
from rankd.records import Snapshot


def snapshot(layer: str, step: int = 1, num_bytes: int = 4) -> Snapshot:
    return Snapshot("@ns/r", layer, step, (1, num_bytes), "float32", "float32", np.zeros(num_bytes, np.uint8))


def key(layer: str) -> tuple[str, str, str]:
    return snapshot(layer).key


def layers(line: Line) -> str:
    return "".join(item.layer for item in line)


def serve(line: Line, layer: str, turn: int) -> None:
    line.take(key(layer))
    line.place(key(layer)).turn = turn


def test_the_layer_that_was_measured_longest_ago_comes_first() -> None:
    line = Line("@ns/r")
    for layer in "abcd":
        line.put(snapshot(layer), 0.0)
    serve(line, "c", 1)
    serve(line, "a", 2)
    assert layers(line) == "bd"
    for layer in "ace":
        line.put(snapshot(layer, 2), 1.0)
    assert layers(line) == "bdeca", "never measured ones first"
    assert key("a") in line and key("x") not in line and len(line) == 5


def test_a_newer_snapshot_keeps_the_layers_place_and_the_time_since_when_it_waits() -> None:
    line = Line("@ns/r")
    old = snapshot("a")
    assert line.put(old, 3.0) is None and line.put(snapshot("b"), 4.0) is None
    assert line.put(snapshot("a", 2, num_bytes=9), 5.0) is old
    assert (layers(line), line.since, line.num_bytes, line.num_superseded) == ("ab", 3.0, 13, 1)
    taken, since = line.take(key("a"))
    assert (taken.step, since, line.since, line.num_bytes) == (2, 3.0, 4.0, 4)
    line.take(key("b"))
    assert line.since is None and line.num_bytes == 0 and not line


def test_least_missed_is_what_was_measured_last() -> None:
    line = Line("@ns/r")
    for layer in "abc":
        line.put(snapshot(layer), 0.0)
    assert line.least_missed(key("c")) == key("a"), "of those never measured the first"
    assert line.least_missed(key("a")) == key("b"), "but the newest last"
    for turn, layer in enumerate("bc", 1):
        serve(line, layer, turn)
        line.put(snapshot(layer, 2), 1.0)
    assert line.least_missed(key("c")) == key("c")
    line.take(key("b"))
    line.take(key("c"))
    assert line.least_missed(key("a")) == key("a"), "there is no other"
