"""Layer names without what wrappers add."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd_client.naming import clashes, clean_names

MODEL = ["h.0.weight", "h.module.weight", "module.weight", "head.weight"]


@pytest.mark.parametrize(
    "wrapped",
    [
        *("{}", "_orig_mod.{}", "module.{}", "module._orig_mod.{}", "_orig_mod.module.{}", "module.module.{}"),
        *("_fsdp_wrapped_module.{}", "_checkpoint_wrapped_module.{}", "_fsdp_wrapped_module._orig_mod.{}"),
    ],
    ids=["bare", "compiled", "DDP", "compiled in DDP", "DDP compiled", "DDP twice", "FSDP", "checkpointed", "in FSDP"],
)
def test_a_model_has_the_same_names_however_it_is_wrapped(wrapped: str) -> None:
    names = {wrapped.format(name): name for name in MODEL}
    assert clean_names(names) == names


@pytest.mark.parametrize(
    ("name", "clean"),
    [
        ("h._orig_mod.0.weight", "h.0.weight"),
        ("_fsdp_wrapped_module.h.0._fsdp_wrapped_module._checkpoint_wrapped_module.weight", "h.0.weight"),
        ("h.my_fsdp_wrapped_module.weight", "h.my_fsdp_wrapped_module.weight"),
        ("lin.parametrizations.weight.original1", "lin.parametrizations.weight.original1"),
        ("modules.weight", "modules.weight"),
        ("my_orig_mod.weight", "my_orig_mod.weight"),
        ("module.module.h.weight", "h.weight"),
        ("module", "module"),
        ("module.", "module."),
        ("_orig_mod", "_orig_mod"),
        ("", ""),
    ],
)
def test_one_name(name: str, clean: str) -> None:
    assert clean_names([name]) == {name: clean}


def test_a_submodule_that_is_really_called_module_keeps_its_name() -> None:
    names = ["module.weight", "weight"]
    assert clean_names(names) == {name: name for name in names}
    assert clean_names([f"module.{name}" for name in names]) == {f"module.{name}": name for name in names}


def test_no_names() -> None:
    assert clean_names([]) == {}


@given(
    st.lists(
        st.lists(st.sampled_from(["module", "_orig_mod", "_fsdp_wrapped_module", "h", ""]), max_size=4).map(".".join),
        max_size=4,
    )
)
def test_cleaning_twice_changes_nothing(names: list[str]) -> None:
    clean = clean_names(names)
    assert set(clean_names(clean.values()).values()) == set(clean.values())


def test_two_names_that_become_one_are_both_named() -> None:
    reasons = clashes(clean_names(["_orig_mod.a", "a", "b"]))
    assert reasons == dict.fromkeys(["_orig_mod.a", "a"], "'_orig_mod.a' and 'a' are both called 'a'")
    assert clashes(clean_names(MODEL)) == {}
