"""What of a run goes first when a spool is full. Pure.

The rules compare readings in log-time, so what a later analysis needs of a layer is a few snapshots in each doubling of
the step, from the start on: the baseline. Dropping the oldest would take the baseline away, dropping the newest the
present. So snapshots have a *class*, known as they come: those of the classes 0 … m are at most 2^m of each layer in
each doubling of the step, evenly spread over it, and each class lies in a file of its own. To make room is to remove
the file of the highest class: at once, on a full disk too, with nothing to copy, and without a moment at which a
kill -9 would leave half of it.

At m = 5 two neighbours are at most a 32nd of the step apart, and the default rule needs a 27th: down to there nothing
that it would find is lost. Measured from step to step of the same layer, so that layers which take turns do not alias;
and from steps alone, so that all processes of a job keep the same ones and the parts of a matrix still fit together.
"""

from __future__ import annotations

BLIND_BELOW = 5
"""With no class above this one left, the default rule may miss what it would have found."""


def thinning_class(previous: int | None, step: int) -> int:
    """Of a layer's snapshot at `step`, the last before it having been at `previous` (None: there was none): the least
    m such that `step` is the first of its bucket, where each doubling of the step is cut into 2^m. From 0 to 63."""
    if previous is None:
        return 0
    octave = max(step.bit_length() - 1, 0)
    largest_bucket = (previous ^ step).bit_length() - 1  # they differ in buckets of up to 2 to the power of this
    return max(0, octave - largest_bucket)
