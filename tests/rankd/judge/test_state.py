import msgpack
import pytest

from rankd.judge.state import STATE_VERSION, StateError, pack_state, unpack_state

STEPS, LOGS = bytes(range(200)) * 40, b"\x07" * 8000


def test_round_trip_and_shared_columns_once() -> None:
    detectors = {
        "a": {"steps": STEPS, "logs": LOGS, "count": 3, "levels": [0.1, 0.25], "raised": None},
        "b": {"steps": bytes(STEPS), "logs": b"", "raised": {"step": 2}},
        "c": {"ema": 0.1},
    }
    state = {"shape": [8, 8], "firing": [], "last_step": None}
    data = pack_state(state, detectors)
    assert unpack_state(data) == (state, detectors)
    assert len(data) < len(STEPS) + len(LOGS) + 300


def test_every_damaged_byte_and_every_cut_is_noticed() -> None:
    data = pack_state({"shape": [8]}, {"a": {"steps": b"12345678"}})
    for place in range(len(data)):
        with pytest.raises(StateError):
            unpack_state(data[:place])
        with pytest.raises(StateError):
            unpack_state(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])


def test_another_version_is_named() -> None:
    data = pack_state({}, {})
    assert data[0] == STATE_VERSION
    assert msgpack.unpackb(data[5:]) == [{}, {}, []]
    with pytest.raises(StateError, match="has version 07; expected 02"):
        unpack_state(b"\x07" + data[1:])
    with pytest.raises(StateError, match="has version none"):
        unpack_state(b"")
