"""docs/protocol.md says what the codec does: its tables are the codec's, and its example decodes."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import msgpack
import pytest

from rankd_client.wire import CODES, DTYPES, decode, decode_event, limits

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")
GOLDEN = {
    row["name"]: row
    for version in (1, 2, 3)
    for row in json.loads((ROOT / "tests" / "golden" / f"protocol{version}.json").read_text(encoding="utf-8"))
}
EXAMPLES = re.findall(r"^```hex (\w+)\n(.*?)^```$", DOCUMENT, re.DOTALL | re.MULTILINE)


def section(title: str) -> str:
    """What stands under a heading, up to the next of any level."""
    found = re.search(rf"^#+ {re.escape(title)}\n(.*?)(?=^#|\Z)", DOCUMENT, re.DOTALL | re.MULTILINE)
    assert found, title
    return found[1]


def table(title: str) -> list[list[str]]:
    """The cells of the section's first table, without its heading; backquotes taken off."""
    lines = [line for line in section(title).splitlines() if line.startswith("|")]
    return [[cell.strip().strip("`") for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_the_error_codes_are_the_codecs() -> None:
    assert {code: rule for code, rule, *_ in table("Error codes")} == CODES


def test_the_dtypes_are_the_codecs() -> None:
    assert table("Dtypes") == [
        [
            str(dtype.code),
            dtype.name,
            str(dtype.item_bytes),
            "reserved" if dtype.reserved else str(dtype.version),
            "yes" if dtype.scaled else "",
        ]
        for dtype in DTYPES.values()
    ]


def test_the_limits_are_the_codecs() -> None:
    ours = {name: value for name, value in vars(limits).items() if name.isupper()}
    assert {name: int(value) for name, value, _ in table("Limits")} == ours


SENT = [row for row in GOLDEN.values() if row["decoder"] in ("message", "handover") and not row.get("decode_only")]


@pytest.mark.parametrize("row", SENT, ids=lambda row: row["name"])
def test_every_key_that_is_sent_is_documented(row: dict[str, Any]) -> None:
    header = msgpack.unpackb(bytes.fromhex(row["frames"][0]))
    rows = [line.split("|")[1] for line in section(f"`{header['t']}`").splitlines() if line.startswith("| `")]
    assert set(header) - {"t"} <= set(re.findall(r"`(\w+)`", "".join(rows)))


@pytest.mark.parametrize(("name", "text"), EXAMPLES, ids=[name for name, _ in EXAMPLES])
def test_the_worked_example_is_the_golden_bytes_and_decodes(name: str, text: str) -> None:
    frames = [bytes.fromhex(frame) for frame in re.sub(r"\n +", " ", text).splitlines()]
    assert [frame.hex() for frame in frames] == GOLDEN[name]["frames"]
    message = decode_event(frames) if name.startswith("event") else decode(frames)
    assert type(message).__name__ == GOLDEN[name]["type"]


def test_there_is_a_worked_example() -> None:
    assert {"hello_defaults", "welcome", "chunk_whole", "ack_recorded"} <= {name for name, _ in EXAMPLES}
