"""Copies of what lies on a GPU, which go on after `push` has returned.

    training stream ──event──▶ side stream: cast into the staging piece ▶ pinned arena ▶ … ▶ a number into pinned memory
          ▲                                                                        └─event─┐
          └── before the weights change: waits on the device, not on the host ◀────────────┘

All CUDA work is issued from the caller's thread. Whoever wants to know whether a copy is whole reads the number, which
needs no call into CUDA: asking an event from another thread would break a graph that is being captured.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, TypeVar

from rankd_client.arena import Region, aligned
from rankd_client.copies.halves import is_unfit
from rankd_client.copies.memory import allocate, bytes_of
from rankd_client.copies.quiet import capturing, has_modes, plain_torch
from rankd_client.copies.recipes import Recipes, goes_with_others
from rankd_client.copies.scaled import copy_scaled
from rankd_client.copies.staging import Recipe, copy_half
from rankd_client.lots import Lot, ids_of
from rankd_client.watch import Watched
from rankd_client.wire import DTYPES, SCALE_BYTES, row_elements

if TYPE_CHECKING:
    import torch

MIN_STAGING_BYTES, MAX_STAGING_BYTES, STAGING_PART = 32 << 20, 256 << 20, 512
"""Of device memory, a 512th, but no more than the model: each piece takes two launches, which cost the training thread
20 to 40 µs each; a GPT-2-small in bfloat16 is two pieces on 80 GB, and one on 140."""

NUM_FLAGS = 8192
"""Of 8 bytes in pinned memory: the number, then for layers whose dtype is decided on the device whether it is the other
one, in turn: far more than are pushed while nobody looks."""

MAX_KNOWN = 16
"""Sets of tensors that are remembered: where they take turns, so many go by."""

NUM_NUMBERS = 1024
"""Of tickets, that lie on the device: one copy tells of each."""

Target = tuple[Watched, Region]

T = TypeVar("T")


class Ticket:
    """Of one push from one device: whether its copies are whole. Keeps what is copied alive until it is dropped."""

    __slots__ = ("_keeps", "_now", "_number")
    dtype: str | None = None

    def __init__(self, number: int, address: int, keeps: Sequence[object]) -> None:
        self._number = number
        self._now = ctypes.c_int64.from_address(address)
        self._keeps: Sequence[object] = keeps

    @property
    def done(self) -> bool:
        if self._now.value < self._number:
            return False
        self._keeps = ()
        return True


class HalfTicket:
    """Of one layer that was to travel as float16."""

    __slots__ = ("_is_unfit", "_ticket")

    def __init__(self, ticket: Ticket, address: int) -> None:
        self._ticket = ticket
        self._is_unfit = ctypes.c_int64.from_address(address)

    @property
    def done(self) -> bool:
        return self._ticket.done

    @property
    def dtype(self) -> str | None:
        """In which it travels after all, once it is done; None: in that which was asked for."""
        return "bfloat16" if self._is_unfit.value else None


class DeviceCopier:
    """One GPU's side stream and staging piece, allocated once. Not thread-safe."""

    def __init__(self, device: torch.device, num_bytes: int = MAX_STAGING_BYTES) -> None:
        """`num_bytes`: with so many of staging a whole push goes through at once."""
        import torch

        self.device = device
        part = torch.cuda.get_device_properties(device).total_memory // STAGING_PART
        staging_bytes = max(min(part, aligned(num_bytes), MAX_STAGING_BYTES), MIN_STAGING_BYTES) & ~63
        self.device_bytes = staging_bytes + 8 * (NUM_FLAGS + NUM_NUMBERS)
        """Taken on the GPU, once and for all."""
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._begun, self._ended = torch.cuda.Event(), torch.cuda.Event()  # type: ignore[no-untyped-call]
        with torch.cuda.stream(self._stream):  # of its pool, so that nothing else reuses them early
            self._staging = torch.empty(staging_bytes, dtype=torch.uint8, device=device)
            self._flags = torch.zeros(NUM_FLAGS, dtype=torch.int64, device=device)
            self._numbers = torch.arange(NUM_NUMBERS, dtype=torch.int64, device=device)
        self._memory = allocate(8 * NUM_FLAGS, pinned=True)
        self._host_flags = self._memory.owner.view(torch.int64)
        self._host_number = self._host_flags[:1]
        self._address = self._memory.owner.data_ptr()
        self._known: dict[tuple[int, ...], Recipes] = {}
        """By the ids of what is watched, which lives as long as it is the same."""
        self._next_flag = 1
        self._halves = range(0)
        """Flags that this push has used so far."""
        self._num_tickets = 0
        self.newest = Ticket(0, self._address, ())
        """Done when everything that was begun is."""

    def copy(self, targets: Sequence[Target], again: bool = False) -> list[Ticket | HalfTicket | Exception]:
        """Begin to copy each tensor into its region; they are as they are now on the current stream. The tickets tell
        when all are whole. Before what is copied changes, `wait` has to be called. `again`: what is watched is the same
        as last time, object for object.

        In the place of a tensor that could not be copied is the fault; its region is written to until `newest` is done.
        """
        if not again:
            self._known.clear()
        keeps: list[object] = [self._memory, targets]  # the first is what a ticket may outlive this object by
        flags = self._aside(lambda: self._do(targets, again, keeps), keeps)
        newest, at = self.newest, self._address
        return [
            flag if isinstance(flag, Exception) else newest if flag is None else HalfTicket(newest, at + 8 * flag)
            for flag in flags
        ]

    def copy_lot(self, lot: Lot) -> Ticket:
        """The same for all that lies side by side; `knows` has said that it was copied before."""
        recipes, layout = self._known[lot.layout.ids], lot.layout
        keeps: list[object] = [self._memory, layout]
        self._aside(lambda: recipes.follow_side_by_side(lot.region, layout.regions(lot.region), keeps), keeps)
        return self.newest

    def knows(self, ids: tuple[int, ...]) -> bool:
        """Whether these were copied just so before."""
        return ids in self._known and not has_modes()

    def _aside(self, work: Callable[[], T], keeps: Sequence[object]) -> T:
        """What `work` gives, that is done on the side stream, after what is under way on the current one."""
        import torch

        stream, device = torch.cuda.current_stream(self.device), torch.cuda.current_device()
        self._begun.record(stream)
        self._stream.wait_event(self._begun)
        torch.cuda.set_stream(self._stream)  # and its device; torch's own context managers take four times as long
        try:
            return work()
        finally:  # whatever comes of it, what was begun goes on
            try:
                self._finish(keeps)
            finally:
                torch.cuda.set_stream(stream)
                if device != self.device.index:
                    torch.cuda.set_device(device)

    def _do(self, targets: Sequence[Target], again: bool, keeps: list[object]) -> list[int | Exception | None]:
        """Of each copy the fault, or the number of its flag where it has one. What was done before for the same tensors
        is done again."""
        key, regions = ids_of([item for item, _ in targets]), [region for _, region in targets]
        if (recipes := self._known.get(key)) is not None and not has_modes():
            recipes.follow(regions, keeps)
            return [None] * len(targets)
        flags = self._take_flags(sum(_is_half(item) for item, _ in targets))
        with plain_torch():
            special = {index: target for index, target in enumerate(targets) if self._is_special(target[0])}
            found = {index: self._special(*target, flags, keeps) for index, target in special.items()}
            plain = {index: item for index, (item, _) in enumerate(targets) if index not in special}
            recipes = Recipes(self._staging, plain)
            recipes.follow(regions, keeps)
            if self._halves:
                span = slice(self._halves.start, self._halves.stop)
                self._host_flags[span].copy_(self._flags[span], non_blocking=True)
                self._halves = range(0)
        if again and not special:
            self._known[key] = recipes
            while len(self._known) > MAX_KNOWN:
                del self._known[next(iter(self._known))]
        return [found.get(index) for index in range(len(targets))]

    def _is_special(self, item: Watched) -> bool:
        if DTYPES[item.dtype].scaled and item.decode is None:
            return not goes_with_others(item.tensor, row_elements(item.shape), self._staging)
        return item.decode is not None or _is_half(item)

    def _special(
        self, item: Watched, region: Region, flags: Iterator[int], keeps: list[object]
    ) -> int | Exception | None:
        """A copy that does not go the way of most, by itself: its values may have to be made first."""
        try:
            source = item.values()
            keeps.append(source if item.decode is None else None)  # made here, and freed here on the same stream
            if DTYPES[item.dtype].scaled:
                target = bytes_of(region).view(-1, row_elements(item.shape) + SCALE_BYTES)
                copy_scaled(item.dtype, source, target, self._staging)
            elif _is_half(item):
                flag = next(flags)
                self._flags[flag] = is_unfit(source)
                copy_half(self._staging, source, region, self._flags[flag] != 0)
                self._halves = range(min(flag, self._halves.start), flag + 1) if self._halves else range(flag, flag + 1)
                return flag
            else:
                Recipe(self._staging, [(item.dtype, source)]).follow([region], [])
        except Exception as error:
            return error
        return None

    def forget(self) -> None:
        """What was remembered of a model: its tensors go with it."""
        self._known.clear()

    def close(self) -> None:
        """Wait, on the host, until nothing is written to the arena any more. Not while a graph is captured."""
        if not capturing():
            self._ended.synchronize()

    def wait(self) -> None:
        """Have the current stream wait, on the device, for the copies that were begun."""
        import torch

        torch.cuda.current_stream(self.device).wait_event(self._ended)

    def _take_flags(self, count: int) -> Iterator[int]:
        """So many flags beside one another."""
        if count >= NUM_FLAGS:
            raise ValueError(f"{count} layers as float16 in one push: expected fewer than {NUM_FLAGS}")
        first = self._next_flag if self._next_flag + count <= NUM_FLAGS else 1
        self._next_flag = first + count
        return iter(range(first, first + count))

    def _finish(self, keeps: Sequence[object]) -> None:
        """Last on the side stream: the number that says that all is there."""
        self._num_tickets += 1
        at = self._num_tickets % NUM_NUMBERS
        with plain_torch() if has_modes() else nullcontext():
            if at == 0:
                self._numbers.add_(NUM_NUMBERS)
            self._host_number.copy_(self._numbers[at : at + 1], non_blocking=True)
        self._ended.record(self._stream)
        self.newest = Ticket(self._num_tickets, self._address, keeps)


def _is_half(item: Watched) -> bool:
    """Whether the device has to decide in which dtype it travels."""
    return item.dtype == "float16" and item.source_dtype != "float16"
