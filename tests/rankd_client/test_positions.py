"""The file that says where a subscriber was."""

from __future__ import annotations

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rankd_client.positions import Position, PositionsFile
from rankd_client.stream.items import Mark

STREAM = "00000000000000aa"
WANTED = {"run": "r", "layers": None, "streams": ["alert"]}
POSITION = Position(
    {"00000000000000bb": {}, STREAM: {("alert", "r"): 7, ("measurement", "@ns/é"): 0}},
    {Mark(STREAM, "alert", "r", 3, in_turn=False)},
    complete=False,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "below" / "positions.json"


@pytest.fixture
def file(path: Path) -> Iterator[PositionsFile]:
    made = PositionsFile(path, WANTED)
    yield made
    made.close()


def load(path: Path, wanted: Any = WANTED) -> Position | None:
    file = PositionsFile(path, wanted)
    file.close()
    return file.position


def test_first_time_there_is_no_position_and_no_file(file: PositionsFile, path: Path) -> None:
    assert file.position is None and not path.exists()


def test_a_position_comes_back_as_it_was_its_streams_in_their_order(file: PositionsFile, path: Path) -> None:
    file.save(Position())
    file.save(POSITION)
    file.close()
    position = load(path)
    assert position == POSITION and position is not None
    assert list(position.places) == list(POSITION.places)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert sorted(p.name for p in path.parent.iterdir()) == ["positions.json", "positions.json.lock"]


def test_a_second_subscriber_is_refused_until_the_first_is_gone(file: PositionsFile, path: Path) -> None:
    with pytest.raises(ValueError, match=r"positions\.json.*another subscriber uses this file"):
        PositionsFile(path, WANTED)
    file.close()
    file.close()
    assert load(path) is None


def test_a_file_of_another_subscription_is_refused(file: PositionsFile, path: Path) -> None:
    file.save(POSITION)
    file.close()
    with pytest.raises(ValueError, match=r'"run": "r".*this one is to .*"run": null'):
        load(path, {**WANTED, "run": None})
    assert load(path) == POSITION  # and nobody holds it


GOOD: dict[str, Any] = {"kind": "rankd-positions", "version": 1, "wanted": WANTED, "complete": True}
GOOD |= {"streams": [{"stream_id": STREAM, "topics": [["alert", "r", 1]]}], "owed": [[STREAM, "r", 1]]}


def test_the_example_of_a_good_file_is_one(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps(GOOD))
    assert load(path) == Position({STREAM: {("alert", "r"): 1}}, {Mark(STREAM, "alert", "r", 1, False)})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"7",
        b"[" * 100_000,
        *(
            json.dumps({**GOOD, **change}).encode()
            for change in (
                {"kind": "else"},
                {"version": 2},
                {"complete": 1},
                {"streams": None},
                {"streams": [7]},
                {"streams": [{"stream_id": STREAM}]},
                {"streams": [{"stream_id": "aa", "topics": []}]},
                {"streams": [{"stream_id": STREAM, "topics": [["alert", "r"]]}]},
                {"streams": [{"stream_id": STREAM, "topics": [["alert", "r", -1]]}]},
                {"streams": [{"stream_id": STREAM, "topics": [["alert", "r", True]]}]},
                {"streams": [{"stream_id": STREAM, "topics": [["alert", "@r", 1]]}]},
                {"streams": [{"stream_id": STREAM, "topics": [["alert", "r", 1], ["alert", "r", 2]]}]},
                {"streams": [{"stream_id": STREAM, "topics": []}] * 9},
                {"owed": [[STREAM, "r"]]},
                {"owed": [[7, "r", 1]]},
                {"owed": [[STREAM, "r", "1"]]},
                {"owed": 7},
                {"begun": 7},
                {"begun": ["aa"]},
                {"begun": ["no hexadecimals!"]},
                {"begun": [7]},
            )
        ),
        json.dumps({key: value for key, value in GOOD.items() if key != "wanted"}).encode(),
    ],
)
def test_a_damaged_file_is_named_and_left_alone(content: bytes, path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"positions\.json' is damaged"):
        load(path)
    assert path.read_bytes() == content


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        PositionsFile(tmp_path / "file" / "positions.json", WANTED)
    (tmp_path / "directory").mkdir()
    with pytest.raises(ValueError, match="cannot be read"):
        PositionsFile(tmp_path / "directory", WANTED)


def test_a_planted_link_is_not_followed(tmp_path: Path) -> None:
    """In a directory that others can write to."""
    others = tmp_path / "others"
    others.write_text("theirs")
    (tmp_path / "positions.json.new").symlink_to(others)
    file = PositionsFile(tmp_path / "positions.json", WANTED)
    file.save(Position({STREAM: {("alert", "r"): 1}}))
    assert others.read_text() == "theirs" and not (tmp_path / "positions.json").is_symlink()
    file.close()
    (tmp_path / "elsewhere.json.lock").symlink_to(others)
    with pytest.raises(ValueError, match=r"elsewhere\.json': cannot be written"):
        PositionsFile(tmp_path / "elsewhere.json", WANTED)
