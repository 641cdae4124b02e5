"""What the same-host path carries: snapshots that a daemon reads out of its client's memory, beside the same in frames.

Rows, one for each size of layer, of pushes of 128 MiB in bfloat16. `ours`: by a real `Client` to the whole daemon but
for its measuring, which would take both cores; from the push's return, when its copies are made and the first byte may
go, until the client heard that each snapshot was recorded. `rival`: the same client, and a daemon that has no room for
memory that is lent, so that all goes in ZeroMQ's frames over ipc://. `raw`: pyzmq's DEALER with the client's options to
a ROUTER over ipc://, the same bytes in chunks of the size for which the daemon asks, copied once into memory that is
there: what looks at no value, asks for no credit and has no gate. The three take turns. GB/s, medians of all rounds;
`ratio`, ours over the rival's, is to be at least `limit` where layers have 16 MB or more.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile

import torch
from _ends import receiver
from _report import Report
from _sending import Send, make_weights, pushed, sent_raw

PUSH_BYTES = 128 << 20
SHAPES = {16: (2048, 4096), 64: (4096, 8192), 1: (512, 1024)}
"""Of a layer, by its MiB. The last is small, and has no limit."""

LIMIT = 3.0
ENDS = {"lent": "intake", "framed": "framed", "raw": "raw-copied"}


def compare(report: Report, addresses: dict[str, str], mib: int, num_rounds: int) -> None:
    weights = make_weights(PUSH_BYTES, SHAPES[mib])
    with (
        pushed(addresses["lent"], weights, "memfd") as lent,
        pushed(addresses["framed"], weights, "zeromq") as framed,
        sent_raw(addresses["raw"], weights) as raw,
    ):
        ways: dict[str, Send] = {"lent": lent, "framed": framed, "raw": raw}
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(num_rounds + 1):
            for name, send in ways.items():
                took = send()
                if number:  # the first touches what is fresh
                    seconds[name].append(took)
    rates = {name: PUSH_BYTES / statistics.median(took) / 1e9 for name, took in seconds.items()}
    ratios = [rival / ours for ours, rival in zip(seconds["lent"], seconds["framed"], strict=True)]
    ratio = rates["lent"] / rates["framed"]
    report.row(
        f"same_host_{mib}_MiB_layers", ratio, LIMIT if mib >= 16 else 0.0, "ratio of GB/s", at_least=True,
        ours_gb_per_s=round(rates["lent"], 3), rival_gb_per_s=round(rates["framed"], 3),
        raw_gb_per_s=round(rates["raw"], 3), ratio_to_raw=round(rates["lent"] / rates["raw"], 3),
        lowest_paired=round(min(ratios), 3), highest_paired=round(max(ratios), 3), num_rounds=num_rounds,
    )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--mib", type=int, nargs="*", default=list(SHAPES), help="sizes of a layer (%(default)s)")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    report = Report()
    with tempfile.TemporaryDirectory(prefix="rk") as directory, contextlib.ExitStack() as stack:
        addresses = {
            name: stack.enter_context(receiver(kind, f"ipc://{directory}/{name}", PUSH_BYTES))
            for name, kind in ENDS.items()
        }
        for mib in arguments.mib:
            compare(report, addresses, mib, arguments.rounds)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
