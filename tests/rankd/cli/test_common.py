import json
import math

import pytest
import typer

from rankd.cli.common import leave, print_json


def test_leave_says_why_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit) as ended:
        leave("device=3: expected a string", 2)
    assert ended.value.exit_code == 2
    assert capsys.readouterr() == ("", "rankd: device=3: expected a string\n")


def test_json_is_one_line_without_nan(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"a": math.nan, "b": [math.inf, {"c": -math.inf}], "d": "\n\u2028", "e": (1.5,), "f": None})
    out, _ = capsys.readouterr()
    assert out.endswith("\n") and len(out.splitlines()) == 1
    assert json.loads(out) == {"a": None, "b": [None, {"c": None}], "d": "\n\u2028", "e": [1.5], "f": None}
