"""Messages and matrices as they go between the daemon and its Ray driver."""

from __future__ import annotations

import socket
import threading

import numpy as np
import pytest
import torch
from works import snapshot

from rankd.executors import Work
from rankd.executors.packed import Array, describe, work_of
from rankd.executors.ray.frames import MAX_MESSAGE_BYTES, receive, send


def through_a_socket(message: dict[str, object], arrays: list[Array]) -> tuple[dict[str, object], list[Array]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sender = threading.Thread(target=send, args=(ours, message, arrays))
        sender.start()
        got = receive(theirs)
        sender.join()
    return got


@pytest.mark.parametrize("partner", [False, True])
def test_a_work_arrives_as_it_was(partner: bool) -> None:
    other = snapshot(torch.randn(40, 4), "x.lora_B") if partner else None
    item = Work(snapshot(torch.randn(4, 300, 700), "x.lora_A"), "estimate", other)
    description, arrays = describe(item)
    told, got = through_a_socket({"work": description}, arrays)
    again = work_of(told["work"], got)  # type: ignore[arg-type]
    assert describe(again)[0] == description and again.tier == "estimate" and again.snapshot.shape == (4, 300, 700)
    assert all(np.array_equal(a, b) for a, b in zip(got, arrays, strict=True)) and len(got) == 1 + partner


def test_what_is_no_message_is_refused_before_room_is_made_for_it() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall((MAX_MESSAGE_BYTES + 1).to_bytes(4, "big"))
        with pytest.raises(ValueError, match="a message of 67108865 bytes; expected at most 67108864"):
            receive(theirs)
        ours.close()
        with pytest.raises(EOFError):
            receive(theirs)
