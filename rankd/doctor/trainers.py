"""What pushing costs the trainers that are connected, and how much of their models is seen."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rankd.doctor.finding import Finding, ok, problem

OVER = 1.5
"""Of `max_overhead`: beyond what chance makes."""

YOUNG_SECONDS = 60.0
"""Since the first push. What that and the next ones took is spread over the time after them, by the client where it is
alone, and by the daemon's plan in a job of several processes."""

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
    is_young = "elapsed_seconds" in row and _number(row, "elapsed_seconds") < YOUNG_SECONDS
    now = min(share, _share_now(row, share))
    never, apart = _number(row, "num_never"), _number(row, "steps_apart")
    text = _describe(row, share, now, bound)
    if never:
        return problem("trainers", f"{text}; {never:g} layers were never pushed", NEVER)
    if bound and now > OVER * bound and not is_young:
        return problem("trainers", f"{text}; pushing costs more than it may", DEAR)
    if apart > STEPS_APART:
        return problem("trainers", f"{text}; its processes are {apart:g} steps apart", APART)
    return ok("trainers", text)


def _share_now(row: Mapping[str, Any], share: float) -> float:
    """What a push takes, of the time to the next one. At most this: a client that is alone leaves more of them out than
    its interval says. A plan that is on its way counts as in force."""
    every = max(1.0, _number(row, "every_steps"), _number(row, "plan_every_steps"))
    between_seconds = every * _number(row, "step_seconds")
    return _number(row, "push_seconds") / between_seconds if between_seconds and "push_seconds" in row else share


def _describe(row: Mapping[str, Any], share: float, now: float, bound: float) -> str:
    here, gone, world_size = _number(row, "num_here"), _number(row, "num_gone"), _number(row, "world_size")
    parts = [f"run {row.get('run')}: {here:g} connected of {world_size:g}"]
    if here < world_size and not gone:
        parts[0] += " (only those with something to send connect)"
    if gone:
        parts.append(f"{gone:g} gone without saying bye")
    parts.append(f"step {row.get('step')}")
    if every := _number(row, "every_steps"):
        parts.append("a push at most every " + (f"{every:g} steps" if every > 1 else "step"))
    if "share" in row:
        cost = f"cost {100 * share:.2f} % of the time" + (f", now {100 * now:.2f} %" if now < share else "")
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
