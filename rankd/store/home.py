"""The directory of the history while this process writes there: opened, opened again, and begun anew."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rankd.config import ConfigError, HistoryConfig
from rankd.store.batch import LayerKey
from rankd.store.database import move_aside
from rankd.store.entries import AlertEntry, Entry
from rankd.store.errors import FAILURES, StoreError, StoreInUse
from rankd.store.fence import Fence
from rankd.store.ledger import Ledger, Switch
from rankd.store.place import prepare
from rankd.store.retention import ClockTrust, DiskQuotas, steady_clock
from rankd.store.schema import FILE_NAME

log = logging.getLogger("rankd.store")


class Home:
    """For one thread. Construction raises as for Writer; afterwards what is in FAILURES or a StoreError says what is
    wrong, `close_ledger` follows, and the next commit opens the file again."""

    def __init__(
        self,
        data: Path,
        config: HistoryConfig,
        clock: Callable[[], float],
        disk_quotas: DiskQuotas | None,
    ) -> None:
        self.path = prepare(data) / FILE_NAME
        self.moved_aside: Path | None = None
        self._config, self._clock, self._disk_quotas = config, clock, disk_quotas
        self._trust = ClockTrust(clock(), steady_clock())
        self._fence = Fence(self.path.parent)
        try:
            self.ledger: Ledger | None = self._open_at_start()
        except BaseException:
            self._fence.release()
            raise
        self.stream_id = self.ledger.stream_id

    def commit(
        self, entries: Sequence[Entry | AlertEntry], superseded: Mapping[LayerKey, int], switches: Sequence[Switch]
    ) -> int:
        """As of Ledger."""
        if self.ledger is None:
            self.ledger = self._open_again()
        self._check(self.ledger)
        return self.ledger.commit(entries, superseded, switches)

    def chore(self) -> bool:
        """As of Ledger."""
        if self.ledger is None:
            return False
        self._check(self.ledger)
        return self.ledger.chore()

    def begin_anew(self, error: StoreError) -> None:
        """At the start, where who reads finds a damaged file that could be opened. Raises StoreError."""
        self.close_ledger()
        self.ledger = self._begin_anew(error)
        self.stream_id = self.ledger.stream_id

    def blame(self, error: StoreError) -> None:
        """Raises `error`, which the daemon's reader met, unless another file has been begun since it looked which is
        there; or what is the matter with the files, if anything is."""
        if self.ledger is not None and error.looked_at >= self.ledger.opened_at:
            self._check(self.ledger)
            raise error

    def set_aside(self, error: StoreError) -> StoreError:
        """Move a damaged file out of the way; what is to be said of it then."""
        try:
            self.moved_aside = move_aside(self.path, self._clock())
        except OSError as another:
            return StoreError("damaged", f"{error}, and it cannot be moved aside ({another})")
        text = f"{error}; it is now {self.moved_aside.name}, and a new one is begun"
        return StoreError("damaged", text, begun_anew=True)

    def finish(self, is_late: Callable[[], bool]) -> None:
        """The last chores, as far as there is time."""
        try:
            while self.ledger is not None and not is_late():
                if not self.chore():
                    self.ledger.checkpoint()
                    break
        except (*FAILURES, StoreError) as error:
            log.warning("%s: on closing: %s", self.path, StoreError.of(error))
        self.close_ledger()

    def close_ledger(self) -> None:
        ledger, self.ledger = self.ledger, None
        if ledger is not None:
            try:
                ledger.close()
            except StoreError as error:
                log.warning("%s: on closing: %s", self.path, error)

    def release(self) -> None:
        """Others may have the directory."""
        self._fence.release()

    def _check(self, ledger: Ledger) -> None:
        ledger.check_files()
        _as_fault(self._fence.hold)

    def _open_at_start(self) -> Ledger:
        try:
            return self._open()
        except (*FAILURES, StoreError) as error:
            fault = StoreError.of(error)
            if fault.kind != "damaged":
                raise fault from None
        return self._begin_anew(fault)

    def _begin_anew(self, fault: StoreError) -> Ledger:
        log.error("%s: %s", self.path, self.set_aside(fault))
        try:
            return self._open()
        except FAILURES as error:
            raise StoreError.of(error) from error

    def _open_again(self) -> Ledger:
        _as_fault(lambda: prepare(self.path.parent))
        _as_fault(self._fence.hold)
        try:
            return self._open()
        except ConfigError as error:  # another program's file in its place
            raise StoreError("io", str(error)) from error

    def _open(self) -> Ledger:
        return Ledger(self.path, self._fence, self._config, self._trust, self._clock, self._disk_quotas)


def _as_fault(act: Callable[[], object]) -> None:
    """What a user is told at the start is a fault that may pass later on."""
    try:
        act()
    except ConfigError as error:
        raise StoreError("busy" if isinstance(error, StoreInUse) else "io", str(error)) from error
