import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd.parts.rules import MAX_PARTS, NO_RULES, Rule, SplitRules, parse_rule


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("none", Rule("none", experts=False)),
        ("experts", Rule("experts", experts=True)),
        ("q,k,v", Rule("q,k,v", ("q", "k", "v"))),
        (" gate , up ; axis = 1 ", Rule(" gate , up ; axis = 1 ", ("gate", "up"), axis=1)),
        ("q:64,k:16,v:16", Rule("q:64,k:16,v:16", ("q", "k", "v"), sizes=(64, 16, 16))),
        ("gate,up;experts", Rule("gate,up;experts", ("gate", "up"), experts=True)),
        (
            "q,k,v;heads=32;groups=8;interleaved;per_head",
            Rule(
                "q,k,v;heads=32;groups=8;interleaved;per_head",
                ("q", "k", "v"),
                heads=32,
                groups=8,
                interleaved=True,
                per_head=True,
            ),
        ),
        ("o;heads=4;per_head;axis=1", Rule("o;heads=4;per_head;axis=1", ("o",), heads=4, axis=1, per_head=True)),
    ],
)
def test_a_rule_is_read(text: str, rule: Rule) -> None:
    assert parse_rule("*", text) == rule


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "names of parts"),
        ("q,,v", "names of parts"),
        ("q,k,q", "different names"),
        ("q.x,k", "letters, digits"),
        ("none;axis=0", "none to stand alone"),
        ("experts;per_head", "experts to stand alone"),
        ("q:4,k", "NAME:SIZE for every part"),
        ("q:4,k:0", "a whole number from 1"),
        ("q:4,k:-1", "a whole number from 1"),
        ("q:4,k:" + "9" * 5000, "a whole number from 1"),
        ("q:4:4,k:1", "NAME:SIZE for every part"),
        ("q,k;axis=2", "in place of 'axis=2'"),
        ("q,k;heads=0", "in place of 'heads=0'"),
        ("q,k;heads=2;heads=2", "each once"),
        ("q,k;heads=2;interleaved;interleaved", "each once"),
        ("q,k;interleave", "interleaved, per_head or experts"),
        ("q,k;", "in place of ''"),
        ("q,k;interleaved", "heads=N beside"),
        ("q,k;groups=2", "heads=N beside"),
        ("q,k;per_head", "heads=N beside"),
        ("q,k,v;heads=6;groups=4", "multiple of groups"),
        ("q:8,k:8;heads=2", "either sizes or heads"),
        ("q:8,k:8;interleaved", "either sizes or heads"),
        ("q", "two parts or more, or per_head"),
        ("q,k,v;heads=1000;per_head", f"at most {MAX_PARTS} parts, not 3000"),
        ("q;heads=99999999999999;per_head", f"at most {MAX_PARTS} parts"),
        (",".join(f"p{index}" for index in range(MAX_PARTS + 1)), f"at most {MAX_PARTS} parts"),
    ],
)
def test_a_wrong_rule_is_refused_by_name_and_value(text: str, expected: str) -> None:
    with pytest.raises(ValueError) as refused:
        parse_rule("*.qkv", text)
    assert str(refused.value).startswith(f"split rule '*.qkv' is {text!r}; expected ")
    assert expected in str(refused.value)


def test_a_rule_without_a_glob_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a glob"):
        SplitRules.parse({"": "q,k,v"})


@given(st.text(st.sampled_from("qkv,:;=1290 noneaxishdgrupt_ilxw.\n\0é"), max_size=40) | st.text())
def test_any_text_is_a_rule_or_a_value_error(text: str) -> None:
    try:
        rule = parse_rule("*", text)
    except ValueError as error:
        assert repr(text) in str(error)
    else:
        assert rule.text == text and rule.num_parts <= MAX_PARTS


def test_the_first_glob_that_is_like_the_name_holds() -> None:
    rules = SplitRules.parse({"h.0.*": "none", "*.attn.weight": "q,k,v", "*": "a,b"})
    found = [rules.find(name) for name in ("h.0.attn.weight", "h.1.attn.weight", "x")]
    assert [rule.text if rule else None for rule in found] == ["none", "q,k,v", "a,b"]
    assert NO_RULES.find("x") is None


def test_units_of_each_layout() -> None:
    grouped = parse_rule("*", "q,k,v;heads=32;groups=8")
    assert (grouped.num_blocks, grouped.units, grouped.num_units) == (1, (32, 8, 8), 48)
    megatron = parse_rule("*", "q,k,v;heads=32;groups=8;interleaved")
    assert (megatron.num_blocks, megatron.units, megatron.num_units) == (8, (4, 1, 1), 48)
    neox = parse_rule("*", "q,k,v;heads=32;interleaved")
    assert (neox.num_blocks, neox.units, neox.num_units) == (32, (1, 1, 1), 96)
    assert parse_rule("*", "q,k,v;heads=32;groups=8;per_head").num_parts == 48
