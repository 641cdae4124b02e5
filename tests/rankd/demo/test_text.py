from pathlib import Path

import pytest
import torch

from rankd.demo.text import MIN_CHARACTERS, VOCABULARY, encode, read_text


def test_the_text_is_long_and_the_same_each_time() -> None:
    text = read_text()
    assert len(text) >= MIN_CHARACTERS
    assert "def " in text
    assert read_text() == text


def test_modules_are_joined_in_their_order_and_missing_ones_left_out(tmp_path: Path) -> None:
    (tmp_path / "b.py").write_text("b" * MIN_CHARACTERS)
    (tmp_path / "a.py").write_text("a")
    text = read_text(["b.py", "absent.py", "a.py"], tmp_path)
    assert text == "b" * MIN_CHARACTERS + "\na"


def test_a_python_without_sources_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "copy.py").write_text("x = 1")
    with pytest.raises(FileNotFoundError, match=r"found 5 characters .* expected at least 200000"):
        read_text(["copy.py"], tmp_path)


def test_every_character_has_a_code_of_its_own_or_the_line_feeds() -> None:
    printable = "".join(map(chr, range(32, 127)))
    assert encode(printable).tolist() == list(range(95))
    assert encode("\n\té\x7f☃").tolist() == [VOCABULARY - 1] * 5


def test_codes_are_within_the_vocabulary() -> None:
    codes = encode(read_text())
    assert codes.dtype == torch.int64
    assert int(codes.min()) >= 0 and int(codes.max()) < VOCABULARY
