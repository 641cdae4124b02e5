"""The tables of docs/operations.md, from a fit. Markdown."""

from __future__ import annotations

import math
from collections.abc import Iterator

from _scale_fit import Fit
from _scale_needs import (
    ASSUMED_COPY_BYTES_PER_SECOND,
    CADENCES,
    MODELS,
    PROCESSES,
    TIERS,
    Measuring,
    TakingIn,
    measuring,
    taking_in,
)


def markdown(fit: Fit) -> str:
    return "\n".join([*_measured(fit), "", *_measuring(fit), "", *_taking_in(fit)])


def _measured(fit: Fit) -> Iterator[str]:
    yield f"**Measured** ({fit.machine}; predicted loads were off by at most {100 * max(fit.errors.values()):.0f} %):"
    yield ""
    yield "| core-seconds for | a tiny one | + 1024 × 1024 | × (n/1024)^ | × (long/short)^ | largest measured |"
    yield "|---|---|---|---|---|---|"
    for tier in TIERS:
        growth = fit.measuring[tier]
        cells = (short(growth.overhead), short(growth.seconds_1k), f"{growth.power:.2f}", f"{growth.stretch:.2f}")
        yield f"| `{tier}` | {' | '.join(cells)} | {fit.largest[tier]:,} |"
    yield ""
    yield "| core-seconds for taking in | over TCP |"
    yield "|---|---|"
    yield f"| a GB, in the clear; with keys | {short(fit.intake['gb'])}; {short(fit.intake['gb_with_keys'])} |"
    yield f"| 1,000 messages: shards, or chunks of them | {short(1000 * fit.intake['messages'])} |"
    yield f"| 1,000 matrices judged, recorded, published | {short(1000 * fit.intake['matrices'])} |"
    yield f"| 1,000 connected processes, a second | {short(1000 * fit.intake['process_seconds'])} |"
    yield f"| nothing, a second | {short(fit.intake['seconds'])} |"
    yield ""
    loads = list(fit.lags[0].oldest)
    yield f"| oldest reading, in turns of all layers, at a load of | {' | '.join(loads)} | sustained |"
    yield f"|---|{'---|' * len(loads)}---|"
    for row in fit.lags:
        what = f"`{row.tier}`, {row.side} × {row.side}, {row.cores} core{'s' * (row.cores > 1)}"
        oldest = " | ".join(f"{row.oldest[load]:.1f}" for load in loads)
        yield f"| {what} | {oldest} | {short(row.sustained)} a second |"


def _measuring(fit: Fit) -> Iterator[str]:
    yield "**Computed**: measuring slots (cores that do nothing else) *or* H100s, so that lag stays below one interval:"
    yield ""
    yield f"| model, a look | every | {' | '.join(f'`{tier}`' for tier in TIERS)} |"
    yield f"|---|---|{'---|' * len(TIERS)}"
    for model in MODELS:
        for every in CADENCES:
            needs = [measuring(fit, model, tier, every) for tier in TIERS]
            look = f"{model.name}: {model.num_matrices} matrices, {short(model.num_bytes / 1e9)} GB"
            when = f"{every:,} steps of {model.step_seconds:g} s"
            yield f"| {look} | {when} | {' | '.join(map(_one, needs))} |"
    yield ""
    copying = short(MODELS[0].num_bytes / ASSUMED_COPY_BYTES_PER_SECOND)
    yield "In brackets: core-seconds and H100-seconds of one look. – : a single matrix takes longer than the interval."
    yield f"† measured earlier on one H100, and {copying} s for copies to it, which are guessed; the other H100 figures"
    yield "are computed from those. 16 slots = 32 cores of a daemon with threads = 16 Ray workers, of a core each."
    yield "405 B has matrices of over `max_layer_bytes` (1 GiB), refused until that and `max_mailbox_bytes` are 2 GiB."


def _one(need: Measuring) -> str:
    slots = "–" if need.slots is None else f"{need.slots:,}"
    gpus = "–" if need.gpus is None else f"{need.gpus:,}"
    mark = "†" if need.is_gpu_measured else ""
    seconds = f"{short(need.core_seconds)} s; {short(need.gpu_seconds)} s{mark}"
    return f"{slots} *or* {gpus} ({seconds})"


def _taking_in(fit: Fit) -> Iterator[str]:
    yield "**Computed**: taking it in, over TCP with keys; where there are two values, every 100 and every 1,000 steps:"
    yield ""
    yield "| model | processes | messages | Gbit/s | cores | daemons | memory: at once; spread | each push at least |"
    yield "|---|---|---|---|---|---|---|---|"
    for model in MODELS:
        for processes in PROCESSES:
            needs = [taking_in(fit, model, processes, every) for every in CADENCES]
            yield f"| {model.name} | {processes} | {needs[0].num_messages:,} | {_pairs(needs)} |"


def _pairs(needs: list[TakingIn]) -> str:
    first = needs[0]
    cells = [
        ", ".join(short(need.bits_per_second / 1e9) for need in needs),
        ", ".join(short(need.cores) for need in needs),
        ", ".join(str(need.daemons) for need in needs),
        f"{short(first.bytes_at_once / 1e9)}; {short(first.bytes_spread / 1e9)} GB",
        ", ".join(f"{math.ceil(need.max_push_bytes / 2**20):,}" for need in needs) + " MiB",
    ]
    return " | ".join(cells)


def short(value: float) -> str:
    """Two digits, or all of those before the point."""
    return f"{value:,.0f}" if value >= 10 else f"{float(f'{value:.2g}'):g}"
