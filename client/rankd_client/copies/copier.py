"""Watched tensors → snapshots in the outbox: from host memory at once, from GPUs by copies that go on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rankd_client.copies.host import copy
from rankd_client.copies.quiet import quiet_torch
from rankd_client.copies.scaled import staging_bytes
from rankd_client.lots import Layout, ids_of
from rankd_client.outbox import Outbox
from rankd_client.snapshot import Snapshot
from rankd_client.watch import Watched

if TYPE_CHECKING:
    import torch

    from rankd_client.copies.device import DeviceCopier

Pair = tuple[Watched, Snapshot]

Copied = tuple[Sequence[Watched], Exception | None]


class Copier:
    """Copies what was chosen. `device_bytes`: of device memory that it holds, once and for all."""

    def __init__(self, outbox: Outbox) -> None:
        self._outbox = outbox
        self._devices: dict[torch.device, DeviceCopier] = {}
        self._pending: set[torch.device] = set()
        """With copies that nobody has made a stream wait for."""
        self._layout: Layout | None = None
        """What went last."""
        self._without: set[str] = set()
        """Those for which there was no memory at the last push: they come first at the next."""

    @property
    def device_bytes(self) -> int:
        return sum(copier.device_bytes for copier in self._devices.values())

    def copy(self, items: Sequence[Watched], step: int, skipped: dict[str, str], again: bool = False) -> Copied:
        """Those that were copied, or are as soon as their GPU gets to it; the others have their reason in `skipped`.
        And the first fault. `again`: the items are those of before, object for object."""
        if not again:
            self.forget()
        elif (found := self._copy_lot(items, step, skipped)) is not None:
            return found
        copied: list[Watched] = []
        faults: list[Exception] = []
        on_host: list[Pair] = []
        on_devices: dict[torch.device, list[Pair]] = {}
        first, self._without = self._without, set()
        try:
            for item in sorted(items, key=lambda item: item.label not in first) if first else items:
                target = self._outbox.reserve(item.name, step, item.num_bytes, item.shape, item.role, item.shard)
                if target is None:
                    skipped[item.label] = "memory"
                    self._without.add(item.label)
                    continue
                target.dtype, target.source_dtype = item.dtype, item.source_dtype
                pairs = on_devices.setdefault(item.tensor.device, []) if item.is_cuda else on_host
                pairs.append((item, target))
            while on_devices:
                device, pairs = on_devices.popitem()
                faults += self._copy_device(device, pairs, copied, skipped, again)
            if on_host:
                on_host.reverse()
                with quiet_torch():
                    while on_host:
                        faults += self._copy_host(*on_host.pop(), copied, skipped)
        finally:  # after Ctrl-C: what was not begun
            for _, target in (*on_host, *(pair for pairs in on_devices.values() for pair in pairs)):
                self._outbox.abandon(target)
        return copied, faults[0] if faults else None

    def forget(self) -> None:
        """Nothing of a model that is gone, or is another one than it was, is kept alive."""
        self._layout = None
        for copier in self._devices.values():
            copier.forget()

    def prepare(self, items: Iterable[Watched]) -> None:
        """What is allocated once and for all on each GPU that has some of these."""
        on_devices: dict[torch.device, int] = {}
        for item in items:
            if item.is_cuda:
                num_bytes = staging_bytes(item.dtype, item.num_bytes)
                on_devices[item.tensor.device] = on_devices.get(item.tensor.device, 0) + num_bytes
        for device, num_bytes in on_devices.items():
            self._copier(device, num_bytes)

    def close(self) -> None:
        """Give the memory on GPUs back, once nothing is copied any more: a few milliseconds."""
        self._pending.clear()
        while self._devices:
            self._devices.popitem()[1].close()

    def fence(self) -> None:
        """Have the current streams wait, on their devices, for copies that still go on."""
        while self._pending:
            self._devices[self._pending.pop()].wait()

    def _copy_lot(self, items: Sequence[Watched], step: int, skipped: dict[str, str]) -> Copied | None:
        """All at once, where they went just so before and are on one GPU; None: they have to go one by one."""
        copier = self._devices.get(items[0].tensor.device) if items else None
        ids = ids_of(items)
        if copier is None or not copier.knows(ids):
            return None
        if self._layout is None or self._layout.ids != ids:
            self._layout = Layout(items)
        if (lot := self._outbox.reserve_lot(self._layout, step)) is None:
            return None
        is_committed = False
        self._pending.add(copier.device)
        try:
            self._outbox.commit_lot(lot, copier.copy_lot(lot))
            is_committed = True
        except Exception as error:
            skipped |= {item.label: f"copy failed: {type(error).__name__}" for item in items}
            return (), error
        finally:
            if not is_committed:
                self._outbox.abandon_lot(lot, copier.newest)
        return items, None

    def _copy_host(
        self, item: Watched, target: Snapshot, copied: list[Watched], skipped: dict[str, str]
    ) -> list[Exception]:
        try:
            target.dtype = copy(item, target.region)
        except BaseException as error:
            self._outbox.abandon(target)
            if not isinstance(error, Exception):
                raise  # Ctrl-C
            skipped[item.label] = f"copy failed: {type(error).__name__}"
            return [error]
        self._outbox.commit(target)
        copied.append(item)
        return []

    def _copy_device(
        self, device: torch.device, pairs: Sequence[Pair], copied: list[Watched], skipped: dict[str, str], again: bool
    ) -> list[Exception]:
        begun = False
        faults: list[Exception] = []
        copier: DeviceCopier | None = None
        try:
            copier = self._copier(device)
            tickets = copier.copy([(item, target.region) for item, target in pairs], again)
            begun = True
        except Exception as error:
            faults = [error]
            skipped |= {item.label: f"copy failed: {type(error).__name__}" for item, _ in pairs}
        finally:
            if copier is not None:
                self._pending.add(device)
            if not begun:  # or not all of it, and nobody knows what is still written to
                for _, target in pairs:
                    self._outbox.abandon(target, copier.newest if copier is not None else None)
        if copier is None or not begun:
            return faults
        for (item, target), ticket in zip(pairs, tickets, strict=True):
            if isinstance(ticket, Exception):
                self._outbox.abandon(target, copier.newest)
                skipped[item.label] = f"copy failed: {type(ticket).__name__}"
                faults.append(ticket)
            else:
                self._outbox.commit(target, ticket)
                copied.append(item)
        return faults

    def _copier(self, device: torch.device, num_bytes: int = 0) -> DeviceCopier:
        if device not in self._devices:
            from rankd_client.copies.device import DeviceCopier

            self._devices[device] = DeviceCopier(device, num_bytes)
        return self._devices[device]
