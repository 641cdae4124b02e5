"""Which matrices are in a weight, by its name and shape alone: a daemon sees no modules.

rules.py: what a user says about it; defaults.py: what is known of names; cuts.py: which rows or columns are a part;
split.py: a weight's parts; stack.py: the readings of a stack of experts → one; lora.py: two factors → their product.
Only lora.py imports torch, so that settings can be checked without it.
"""

from __future__ import annotations

from rankd.parts.rules import MAX_PARTS, NO_RULES, Rule, SplitRules, parse_rule
from rankd.parts.split import MAX_MATRICES, Kind, Part, Split, one_matrix, part_name, split, whole_name
from rankd.parts.stack import summarise_stack

__all__ = [
    "MAX_MATRICES",
    "MAX_PARTS",
    "NO_RULES",
    "Kind",
    "Part",
    "Rule",
    "Split",
    "SplitRules",
    "one_matrix",
    "parse_rule",
    "part_name",
    "split",
    "summarise_stack",
    "whole_name",
]
