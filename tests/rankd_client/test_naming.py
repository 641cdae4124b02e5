"""Layer names without what wrappers add."""

import pytest

from rankd_client.naming import clean_name, clean_names


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("h.0.weight", "h.0.weight"),
        ("_orig_mod.h.0.weight", "h.0.weight"),
        ("module._orig_mod.h.weight", "h.weight"),
        ("_orig_mod.module.h.weight", "h.weight"),
        ("h._orig_mod.0.weight", "h.0.weight"),
        ("module.module.h.weight", "h.weight"),
        ("h.module.weight", "h.module.weight"),
        ("modules.weight", "modules.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("module", "module"),
        ("_orig_mod", "_orig_mod"),
        ("", ""),
    ],
)
def test_clean_name(name: str, clean: str) -> None:
    assert clean_name(name) == clean
    assert clean_name(clean) == clean


def test_two_layers_never_become_one() -> None:
    assert list(clean_names(["weight", "module.weight", "_orig_mod.b"])) == [
        ("weight", "weight"),
        ("module.weight", "module.weight"),
        ("_orig_mod.b", "b"),
    ]
