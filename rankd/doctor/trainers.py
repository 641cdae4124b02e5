"""What pushing costs the trainers that are connected, and how much of their models is seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rankd.doctor.finding import Finding, ok, problem

OVER = 1.5
"""Of `max_overhead`: beyond what chance and the first pushes make."""

STEPS_APART = 100
"""Between two processes of a job: more than any collective lets them be."""

NEVER = "raise max_push_bytes, or look in the receipts of push() for why a layer is skipped"
DEAR = "push more rarely (every_steps=), less at once (max_push_bytes=), or in a smaller dtype"
APART = "look at the one that is behind: it hangs, or its connection is slow"


def check_trainers(rows: Any) -> Iterator[Finding]:
    """`rows`: a list as `rankd.trainers` sums runs up; what is not in it, or is no number, counts as 0."""
    runs = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, Sequence) else []
    for row in runs:
        yield _check_run(row)
    if not runs:
        yield ok("trainers", "none is connected")


def _check_run(row: Mapping[str, Any]) -> Finding:
    share, bound = _number(row, "share"), _number(row, "max_overhead")
    never, apart = _number(row, "num_never"), _number(row, "steps_apart")
    text = _describe(row, share, bound)
    if never:
        return problem("trainers", f"{text}; {never:g} layers were never pushed", NEVER)
    if bound and share > OVER * bound:
        return problem("trainers", f"{text}; pushing costs more than it may", DEAR)
    if apart > STEPS_APART:
        return problem("trainers", f"{text}; its processes are {apart:g} steps apart", APART)
    return ok("trainers", text)


def _describe(row: Mapping[str, Any], share: float, bound: float) -> str:
    here, gone = _number(row, "num_here"), _number(row, "num_gone")
    parts = [f"run {row.get('run')}: {here:g} connected of {_number(row, 'world_size'):g}"]
    if gone:
        parts.append(f"{gone:g} gone without saying bye")
    parts.append(f"step {row.get('step')}")
    if every := _number(row, "every_steps"):
        parts.append(f"a push every {every:g} steps")
    if "share" in row:
        cost = f"cost {100 * share:.2f} % of the time"
        parts.append(cost + (f" of at most {100 * bound:g} %" if bound else ""))
    if "num_layers" in row:
        oldest = _number(row, "oldest_steps")
        parts.append(f"{_number(row, 'num_layers'):g} layers, the stalest {oldest:g} steps old")
    given_up = {key: _number(row, f"num_{key}") for key in ("dropped", "replaced")}
    parts += [f"{number:g} {key} before they were sent" for key, number in given_up.items() if number]
    paths = row.get("paths")
    if isinstance(paths, list | tuple) and paths:
        parts.append(f"by {' and '.join(map(str, paths))}")
    return ", ".join(parts)


def _number(row: Mapping[str, Any], key: str) -> float:
    value = row.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
