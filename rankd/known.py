"""The runs that have a place here, and the step of each of their layers that was taken last. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set

from rankd.config import Limits
from rankd.namespaces import namespace_of
from rankd.quota import Quota, Tally, half
from rankd_client.wire import WireError

LayerRole = tuple[str, str]


class Known:
    """Every run and every layer of all that has a place holds memory further on: its detectors, and what fires."""

    def __init__(self, limits: Limits, quota: Callable[[str], Quota]) -> None:
        self.limits = limits
        self._quota = quota
        self._newest: dict[str, dict[LayerRole, int]] = {}
        self._seen_at: dict[str, float] = {}
        self._num_runs = Tally()
        self._num_layers = Tally()

    def __contains__(self, run: str) -> bool:
        return run in self._newest

    def check_run(self, run: str) -> None:
        """Raises WireError where there is no room for another run, which is `run`."""
        if len(self._newest) >= self.limits.max_runs:
            raise WireError("too_many_runs", f"{len(self._newest)} runs; at most {self.limits.max_runs}")
        namespace = namespace_of(run)
        max_runs = self._quota(namespace).max_runs
        if max_runs is not None and self._num_runs.of(namespace) >= max_runs:
            raise WireError("quota_exceeded", f"namespace {namespace!a} has {max_runs} runs, which is its quota")
        self._check_layers(run)

    def check_layer(self, run: str, layer: LayerRole) -> None:
        """Raises WireError where `layer` is new and there is no room for it."""
        newest = self._newest.get(run, {})
        if layer in newest:
            return
        if len(newest) >= self.limits.max_layers_per_run:
            raise WireError("too_many_layers", f"run has {len(newest)}; at most {self.limits.max_layers_per_run}")
        self._check_layers(run)

    def newest(self, run: str, layer: LayerRole) -> int | None:
        """The step that was taken last."""
        return self._newest.get(run, {}).get(layer)

    def enter(self, run: str, last_steps: Mapping[LayerRole, int], now: float) -> None:
        """Give `run` a place, if it has none. All of its `last_steps` come along, though they may be more than there is
        room for: a run that is recorded is not looked up for every chunk that finds none."""
        self._seen_at[run] = now
        if run not in self._newest:
            self._newest[run] = dict(last_steps)
            self._num_runs.add(run, 1)
            self._num_layers.add(run, len(last_steps))

    def take(self, run: str, layer: LayerRole, step: int) -> None:
        newest = self._newest[run]
        self._num_layers.add(run, layer not in newest)
        newest[layer] = step

    def idle(self, now: float, connected: Set[str]) -> str | None:
        """The longest-silent run that is not `connected` and has been silent long enough, where another one as large as
        runs may be would find no room: in all, or in the namespace."""
        limit = now - self.limits.run_idle_seconds
        silent = [run for run, at in self._seen_at.items() if at < limit and run not in connected]
        full = {namespace for namespace in {namespace_of(run) for run in silent} if self._is_full(namespace)}
        return min((run for run in silent if namespace_of(run) in full), key=self._seen_at.__getitem__, default=None)

    def forget(self, run: str) -> None:
        if run in self._newest:
            self._num_runs.add(run, -1)
            self._num_layers.add(run, -len(self._newest.pop(run)))
            del self._seen_at[run]

    def _check_layers(self, run: str) -> None:
        max_layers, namespace = self.limits.max_layers, namespace_of(run)
        if self._num_layers.total >= max_layers:
            raise WireError("too_many_layers", f"all runs have {self._num_layers.total}; at most {max_layers}")
        share = half(max_layers)
        if namespace and self._num_layers.of(namespace) >= share:
            raise WireError("too_many_layers", f"namespace {namespace!a} has {share} in all runs, which is its share")

    def _is_full(self, namespace: str) -> bool:
        max_runs = self._quota(namespace).max_runs
        if len(self._newest) >= self.limits.max_runs:
            return True
        if max_runs is not None and self._num_runs.of(namespace) >= max_runs:
            return True
        max_layers, largest = self.limits.max_layers, self.limits.max_layers_per_run
        if self._num_layers.total + largest > max_layers:
            return True
        return bool(namespace) and self._num_layers.of(namespace) + largest > half(max_layers)
