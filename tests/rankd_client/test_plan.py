"""Which steps are due and which layers go: everybody gets a turn, and several processes choose alike."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rankd_client.plan import Schedule, choose, choose_alike, process_world
from rankd_client.wire import Plan


@dataclass(frozen=True)
class Layer:
    name: str
    num_bytes: int
    priority: bool = False
    group: str = ""

    @property
    def turn_bytes(self) -> int:
        return self.num_bytes


def due_steps(schedule: Schedule, steps: range | list[int], world_size: int = 1) -> list[int]:
    last, due = None, []
    for step in steps:
        schedule.called(step)
        if schedule.due(step, last, world_size):
            due.append(step)
            last = step
    return due


def test_alone_the_first_step_is_due_and_then_each_multiple() -> None:
    assert due_steps(Schedule(10), range(7, 41)) == [7, 10, 20, 30, 40]


def test_alone_a_step_that_jumps_over_a_multiple_is_due() -> None:
    assert due_steps(Schedule(10), [3, 9, 14, 19, 27, 45, 46]) == [3, 14, 27, 45]


def test_a_step_that_goes_back_starts_anew_and_a_repeated_one_is_not_due() -> None:
    assert due_steps(Schedule(10), [30, 30, 12, 13, 20]) == [30, 12, 20]
    assert due_steps(Schedule(1), [5, 5, 6]) == [5, 6]


def test_of_several_processes_none_has_a_first_step_that_is_due_by_itself() -> None:
    assert due_steps(Schedule(10), range(7, 41), world_size=8) == [10, 20, 30, 40]


def test_of_several_processes_a_cadence_of_the_users_own_is_no_reason_never_to_push() -> None:
    assert due_steps(Schedule(4), range(9, 60, 10), world_size=2) == [19, 29, 39, 49, 59]
    assert due_steps(Schedule(16), range(0, 100, 10), world_size=2) == [0, 20, 40, 50, 70, 80]


def test_of_several_processes_a_step_that_goes_back_starts_anew_and_a_repeated_one_is_what_it_was() -> None:
    assert due_steps(Schedule(10), [27, 31, 31, 12, 12, 25, 10, 10, 11], world_size=2) == [31, 31, 25, 10, 10]


@given(
    st.lists(st.integers(0, 300), min_size=2, max_size=60),
    st.integers(0, 59),
    st.lists(st.tuples(st.integers(0, 300), st.integers(0, 40)), max_size=2),
)
def test_processes_that_are_called_alike_choose_alike_from_the_second_call_on(
    steps: list[int], joins_at: int, plans: list[tuple[int, int]]
) -> None:
    early, late = Schedule(3), Schedule(3)
    for number, (first_step, every_steps) in enumerate(plans):
        for schedule in (early, late):
            schedule.adopt(Plan(number + 1, first_step, every_steps))
    joins_at %= len(steps)
    for step in steps[:joins_at]:
        early.called(step)
    is_first = True
    for step in steps[joins_at:]:
        early.called(step)
        late.called(step)
        is_first &= step == steps[joins_at]  # again and again, it is one step
        assert is_first or early.due(step, None, 2) == late.due(step, None, 2)


def test_a_plan_holds_from_its_first_step_and_never_makes_pushes_more_frequent() -> None:
    schedule = Schedule(10)
    schedule.adopt(Plan(1, first_step=100, every_steps=50))
    assert due_steps(schedule, range(80, 201), world_size=2) == [80, 90, 100, 150, 200]
    schedule.adopt(Plan(2, first_step=300, every_steps=5))
    assert [schedule.interval_at(step) for step in (250, 299, 300)] == [50, 50, 10]
    assert Schedule(10).interval_at(0) == 10


def test_min_interval_holds_alone_only() -> None:
    schedule = Schedule(1, min_interval_seconds=2.0)
    assert schedule.too_soon(1.9, world_size=1)
    assert not schedule.too_soon(2.0, world_size=1)
    assert not schedule.too_soon(None, world_size=1)
    assert not schedule.too_soon(0.1, world_size=2)


def test_priority_goes_first_then_the_stalest() -> None:
    layers = [Layer("a", 4), Layer("b", 4), Layer("head", 2, priority=True), Layer("c", 4)]
    last: dict[str, int] = {}
    pushes = []
    for number in range(4):
        names = choose(layers, 7, last)
        pushes.append(names)
        last |= dict.fromkeys(names, number)
    assert pushes == [["head", "a"], ["head", "b"], ["head", "c"], ["head", "a"]]


def test_what_does_not_fit_this_time_is_first_the_next() -> None:
    layers = [Layer("small", 1), Layer("large", 9)]
    assert choose(layers, 9, {}) == ["small"]
    assert choose(layers, 9, {"small": 1}) == ["large"]
    assert choose(layers, 8, {"small": 1}) == ["small"]  # larger than a push: never


SIZES = st.lists(st.tuples(st.integers(1, 20), st.booleans()), max_size=12)


@given(SIZES, st.integers(1, 40))
def test_nobody_starves_and_no_push_is_too_large(sizes: list[tuple[int, bool]], max_bytes: int) -> None:
    layers = [Layer(str(i), size, priority) for i, (size, priority) in enumerate(sizes)]
    by_name = {layer.name: layer.num_bytes for layer in layers}
    first_bytes = sum(layer.num_bytes for layer in layers if layer.priority)
    last: dict[str, int] = {}
    seen: Counter[str] = Counter()
    together: Counter[str] = Counter()
    for number in range(len(layers) + 1):
        names = choose(layers, max_bytes, last)
        alike = choose_alike(layers, max_bytes, number)
        for chosen in (names, alike):
            assert sum(by_name[name] for name in chosen) <= max_bytes and len(set(chosen)) == len(chosen)
        last |= dict.fromkeys(names, number)
        seen.update(names)
        together.update(alike)
    for layer in layers:
        room = max_bytes if layer.priority else max_bytes - first_bytes
        if first_bytes <= max_bytes and layer.num_bytes <= room:
            assert seen[layer.name] and together[layer.name], layer


def test_alike_is_a_function_of_the_turn() -> None:
    layers = [Layer("a", 4), Layer("b", 4), Layer("head", 2, priority=True), Layer("huge", 99), Layer("c", 4)]
    turns = [choose_alike(layers, 7, turn) for turn in range(3)]
    assert sorted(turns) == [["head", "a"], ["head", "b"], ["head", "c"]]
    assert turns == [choose_alike(layers, 7, turn) for turn in range(3)] and choose_alike([], 7, 3) == []


def test_no_layer_starves_whichever_steps_are_pushed() -> None:
    """Every step or every tenth, and as many parts as these go into, or not."""
    for num_parts in range(2, 33):
        layers = [Layer(str(part), 1, group="mesh") for part in range(num_parts)]
        for stride in range(1, 65):
            left = set(range(num_parts))
            for push in range(12 * num_parts):
                left.discard(int(choose_alike(layers, 1, push * stride)[0]))
                if not left:
                    break
            assert not left, f"{left} of {num_parts} parts, every {stride} steps"


@pytest.mark.parametrize("stride", [1, 2, 5, 10])
def test_who_knows_other_groups_too_sends_the_same_parts_when_their_turn_comes(stride: int) -> None:
    shared = [Layer(f"dense.{part}", 1, group="layers") for part in range(5)]
    here = [*(Layer(f"expert.{part}", 1, group="experts") for part in range(4)), *shared]
    together: Counter[str] = Counter()
    for push in range(200):
        (one,), (other,) = choose_alike(here, 1, push * stride), choose_alike(shared, 1, push * stride)
        together[one] += 1
        assert one == other or one.startswith("expert"), push
    assert len(together) == 9


def one_process(dense: list[int], experts: list[int], process: int) -> list[Layer]:
    """The layers that one process of a job knows: dense ones, all of them sharded over the job, and its own experts."""
    own = [Layer(f"expert.{process}.{i}", size) for i, size in enumerate(experts)]
    return [*own[:1], *(Layer(f"dense.{i}", size, group="mesh") for i, size in enumerate(dense)), *own[1:]]


BYTES = st.lists(st.integers(1, 20), max_size=10)


@given(BYTES, BYTES, BYTES, st.integers(20, 60))
def test_processes_that_know_other_layers_too_agree_on_the_shared_ones(
    dense: list[int], mine: list[int], theirs: list[int], max_bytes: int
) -> None:
    if not mine or not theirs:
        mine = theirs = []
    here, there = one_process(dense, mine, 0), one_process(dense, theirs, 1)
    together: Counter[str] = Counter()
    all_dense = {f"dense.{i}" for i in range(len(dense))}
    all_fit = [sum(layer.num_bytes for layer in layers) <= max_bytes for layers in (here, there)]
    for turn in range(1000):
        chosen = [set(choose_alike(layers, max_bytes, turn)) for layers in (here, there)]
        shared = [{name for name in names if name.startswith("dense")} for names in chosen]
        if all_fit[0] == all_fit[1]:
            assert shared[0] == shared[1]
        else:  # who takes all takes what the others do, too
            assert shared[all_fit[0]] <= shared[all_fit[1]]
        together.update(chosen[0] & chosen[1])
        for layers, names in zip((here, there), chosen, strict=True):
            assert sum(layer.num_bytes for layer in layers if layer.name in names) <= max_bytes
        if turn >= 10 and set(together) == all_dense:
            break
    assert set(together) == all_dense


def test_of_a_group_priority_goes_at_each_of_its_turns() -> None:
    layers = [Layer("e", 7), Layer("a", 4, group="mesh"), Layer("b", 4, group="mesh"), Layer("head", 2, True, "mesh")]
    turns = {tuple(choose_alike(layers, 7, turn)) for turn in range(40)}
    assert turns == {("e",), ("head", "a"), ("head", "b")}


@pytest.mark.parametrize(
    ("rank", "size", "world"),
    [("3", "8", (3, 8)), (None, None, (0, 1)), ("x", "8", (0, 1)), ("8", "8", (0, 1)), ("-1", "2", (0, 1))],
)
def test_the_launchers_environment(
    monkeypatch: pytest.MonkeyPatch, rank: str | None, size: str | None, world: tuple[int, int]
) -> None:
    monkeypatch.delitem(sys.modules, "torch.distributed", raising=False)
    for name, value in (("RANK", rank), ("WORLD_SIZE", size)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    assert process_world() == world
