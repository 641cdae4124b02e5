"""What a user says about the matrices in a weight: a glob on its name, and a rule. Parsed here and nowhere else.

RULE   = "none" | "experts" | PARTS {";" OPTION}
PARTS  = NAME {"," NAME} | NAME ":" SIZE {"," NAME ":" SIZE}
OPTION = "axis=0" | "axis=1" | "heads=N" | "groups=N" | "interleaved" | "per_head" | "experts"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

MAX_PARTS = 1024
"""Of one weight: each is a row, and a layer's worth of detectors. 128 heads of q, k and v are 384."""

_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_NUMBER = re.compile(r"[1-9][0-9]{0,14}")
_OPTIONS = "axis=0, axis=1, heads=N, groups=N, interleaved, per_head or experts"
_NUMBERS = {"axis": re.compile("[01]"), "heads": _NUMBER, "groups": _NUMBER}
_FLAGS = ("interleaved", "per_head", "experts")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as `parse_rule` reads it. Without `names` nothing is split.

    `experts`: the weight is a stack of matrices, each of which the rest is about; None: where its name and shape say
    so. `axis`: 0 for rows, 1 for columns of the matrix; None: whichever the rule fits.
    """

    text: str
    names: tuple[str, ...] = ()
    sizes: tuple[int, ...] | None = None
    axis: int | None = None
    heads: int | None = None
    groups: int | None = None
    interleaved: bool = False
    per_head: bool = False
    experts: bool | None = None

    @property
    def num_blocks(self) -> int:
        """How often the pattern of `units` comes along the axis: once per group where it is interleaved."""
        return (self.groups or self.heads or 1) if self.interleaved else 1

    @property
    def units(self) -> tuple[int, ...]:
        """How many units each part has in a block. A unit is a head where `heads` is given, a row or column where sizes
        are, else a whole part. Only the first part has more heads than there are groups."""
        if self.sizes is not None:
            return self.sizes
        first, others = self.heads or 1, self.groups or self.heads or 1
        return (first // self.num_blocks, *(others // self.num_blocks for _ in self.names[1:]))

    @property
    def num_units(self) -> int:
        """Along the whole axis: its length is a multiple of this, or this itself where sizes are given."""
        return self.num_blocks * sum(self.units)

    @property
    def num_parts(self) -> int:
        return self.num_units if self.per_head else len(self.names)

    @property
    def fits(self) -> str:
        """What the rule expects of a matrix, in words."""
        side = {0: "rows", 1: "columns", None: "rows or columns"}[self.axis]
        return f"{self.num_units} {side}" if self.sizes is not None else f"a multiple of {self.num_units} {side}"


@dataclass(frozen=True, slots=True)
class SplitRules:
    """Rules in their order: of those whose glob is like a layer's name, the first holds."""

    rules: tuple[tuple[str, Rule], ...] = ()

    @classmethod
    def parse(cls, texts: Mapping[str, str]) -> SplitRules:
        """Glob → rule. Raises ValueError as `parse_rule` does."""
        return cls(tuple((glob, parse_rule(glob, text)) for glob, text in texts.items()))

    def find(self, layer: str) -> Rule | None:
        return next((rule for glob, rule in self.rules if fnmatchcase(layer, glob)), None)


NO_RULES = SplitRules()


def parse_rule(glob: str, text: str) -> Rule:
    """The rule that `text` is for layers like `glob`. Raises ValueError naming the rule, its value and what was
    expected."""
    try:
        if not glob:
            raise ValueError("a glob on layers' names before it")
        first, *options = (item.strip() for item in text.split(";"))
        if first in ("none", "experts"):
            if options:
                raise ValueError(f"{first} to stand alone")
            return Rule(text, experts=first == "experts")
        return _checked(_with_options(text, *_parts(first), options))
    except ValueError as error:
        raise ValueError(f"split rule {glob!r} is {text!r}; expected {error}") from None


def _parts(text: str) -> tuple[tuple[str, ...], tuple[int, ...] | None]:
    """Names, and sizes if there are any. ValueError says what was expected, as in all functions below."""
    items = [[word.strip() for word in item.split(":")] for item in text.split(",")]
    names = tuple(item[0] for item in items)
    if not all(_NAME.fullmatch(name) for name in names) or len(set(names)) < len(names):
        raise ValueError("none, experts, or different names of parts (letters, digits, _ and -) with commas between")
    if all(len(item) == 1 for item in items):
        return names, None
    if not all(len(item) == 2 and _NUMBER.fullmatch(item[1]) for item in items):
        raise ValueError("NAME:SIZE for every part, a size being a whole number from 1")
    return names, tuple(int(item[1]) for item in items)


def _with_options(text: str, names: tuple[str, ...], sizes: tuple[int, ...] | None, options: list[str]) -> Rule:
    numbers: dict[str, int] = {}
    flags: set[str] = set()
    for option in options:
        key, _, value = (word.strip() for word in option.partition("="))
        if option in _FLAGS and option not in flags:
            flags.add(option)
        elif key in _NUMBERS and key not in numbers and _NUMBERS[key].fullmatch(value):
            numbers[key] = int(value)
        else:
            raise ValueError(f"{_OPTIONS}, each once, in place of {option!r}")
    return Rule(
        text,
        names,
        sizes,
        numbers.get("axis"),
        numbers.get("heads"),
        numbers.get("groups"),
        "interleaved" in flags,
        "per_head" in flags,
        True if "experts" in flags else None,
    )


def _checked(rule: Rule) -> Rule:
    by_head = rule.interleaved or rule.per_head or rule.groups is not None
    expectations = (
        (len(rule.names) > 1 or rule.per_head, "two parts or more, or per_head"),
        (rule.sizes is None or (rule.heads is None and not by_head), "either sizes or heads"),
        (rule.heads is not None or not by_head, "heads=N beside groups, interleaved or per_head"),
        ((rule.heads or 0) % (rule.groups or 1) == 0, "heads to be a multiple of groups"),
    )
    for holds, expected in expectations:
        if not holds:
            raise ValueError(expected)
    if rule.num_parts > MAX_PARTS:
        raise ValueError(f"at most {MAX_PARTS} parts, not {rule.num_parts}")
    return rule
